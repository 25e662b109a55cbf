package gitrepo

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttributes gives a child a process group of its own and lets the kernel kill it when we die.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// syncFileSystem makes everything durable that was written to the file system of the directory.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return closeAnd(unix.Syncfs(int(f.Fd())), f)
}
