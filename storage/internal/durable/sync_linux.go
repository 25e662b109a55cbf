package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func syncTree(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	// Since Linux 5.8 syncfs also reports earlier failures to write back.
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd()))), dir.Close())
}

func startWriteback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func syncData(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
