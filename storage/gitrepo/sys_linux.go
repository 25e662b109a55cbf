package gitrepo

import "syscall"

// childAttributes gives a child a process group of its own and lets the kernel kill it when we die.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
