//go:build unix && !linux

package gitrepo

import (
	"os"
	"syscall"
)

// childAttributes gives a child a process group of its own. Only Linux kills it when we die; elsewhere the next
// Open waits for it.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// punchHole does nothing: the space is free when the file is.
func punchHole(*os.File, int64, int64) error { return nil }
