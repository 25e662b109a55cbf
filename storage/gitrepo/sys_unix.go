//go:build unix && !linux

package gitrepo

import "syscall"

// childAttributes gives a child a process group of its own. Only Linux kills it when we die; elsewhere the next
// Open waits for it.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
