package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"syscall"
)

// stateSuffix names the file beside the index that says how it was left: JSON, see state.
const stateSuffix = ".state"

// state says who has the index open, or what it was when it was closed. bbolt has no checksums of
// its own and may take the process down on a page that is not what it wrote, so a file is
// given to it only when it is known to be what this package wrote last.
type state struct {
	// Boot is the run of the kernel in which the file was opened, see bootID. As long as the kernel
	// runs, the file has all that was written to it, whatever became of the process. It is empty when
	// the file was closed in order.
	Boot string `json:"boot,omitempty"`
	// Inode of the file that was opened. A copy of it was made while it changed.
	Inode uint64 `json:"inode,omitempty"`

	// Of a file that was closed in order: its length, and the CRC-32C of the whole of it.
	SizeBytes int64  `json:"size_bytes,omitempty"`
	Sum       uint32 `json:"sum,omitempty"`
}

// bootID names the run of the kernel. Source: random(4). It is empty where there is none.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// trust returns an error that says why the file at path cannot be what this package wrote last. A
// file that is not there is fine.
func trust(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	var left state
	text, err := os.ReadFile(path + stateSuffix)
	if err == nil {
		err = json.Unmarshal(text, &left)
	}
	if err != nil {
		return fmt.Errorf("nothing says how the index was left: %w", err)
	}
	if left.Boot != "" {
		switch {
		case left.Boot != bootID():
			return errors.New("the machine stopped while the index was open")
		case left.Inode != inode(info):
			return errors.New("the index is a copy of one that was open")
		}
		return nil
	}
	found, err := measure(path)
	if err == nil && found != left {
		err = errors.New("the index is not what it was when it was closed")
	}
	return err
}

func inode(info os.FileInfo) uint64 {
	stat, _ := info.Sys().(*syscall.Stat_t)
	return uint64(stat.Ino)
}

// opened is the state of a file from now on.
func opened(path string) (state, error) {
	info, err := os.Stat(path)
	if err != nil {
		return state{}, err
	}
	return state{Boot: bootID(), Inode: inode(info)}, nil
}

// measure is the state of a closed file.
func measure(path string) (state, error) {
	f, err := os.Open(path)
	if err != nil {
		return state{}, err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return state{SizeBytes: n, Sum: h.Sum32()}, err
}

// write replaces what is said about the file at path. It does not wait for the disk: after a power
// cut an older state does not fit the file, or the boot, and the index is rebuilt.
func (s state) write(path string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	part := path + stateSuffix + ".tmp"
	if err := os.WriteFile(part, text, 0o600); err != nil {
		return err
	}
	return os.Rename(part, path+stateSuffix)
}
