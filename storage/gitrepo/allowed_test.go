package gitrepo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/herdbook/herdbook/storage/gitrepo"
)

// A client that stays connected is asked for its right before each request, not once.
func TestConnectedFetchIsAllowedEachTime(t *testing.T) {
	s := newServer(t)
	w := newClient(t).work(s, 1)
	w.git("push", "-q", "origin", "main")
	const command = "command=ls-refs\n"
	request := fmt.Sprintf("%04x%s0000", len(command)+4, command)
	gone, asked := errors.New("the key was revoked"), 0
	var out bytes.Buffer
	err := s.store.ConnectUploadPack(t.Context(), gitrepo.UploadPack{
		Repository: s.repo(), GitProtocol: "version=2", In: strings.NewReader(strings.Repeat(request, 3)), Out: &out, Stop: func() {},
		Allowed: func(context.Context) error {
			if asked++; asked == 2 {
				return gone
			}
			return nil
		},
	})
	if !errors.Is(err, gone) || asked != 2 {
		t.Errorf("ConnectUploadPack = %v after %d questions, want the error of the second", err, asked)
	}
	if got := strings.Count(out.String(), "refs/heads/main"); got != 1 {
		t.Errorf("the refs were listed %d times, want once", got)
	}
}
