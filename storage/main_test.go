package storage_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

func TestMain(m *testing.M) {
	if hook.Wanted() { // storage tries the hook with this program, when "make hook" has not been run
		syscall.Exit(hook.Main()) // os.Exit sleeps for a second in a program with the race detector
	}
	os.Exit(m.Run())
}
