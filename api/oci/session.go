package oci

import (
	"container/list"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// sessionLife is how long an upload waits for its next part. The store keeps what has come for as long.
const sessionLife = 24 * time.Hour

// Sessions makes the last part of the addresses of uploads, and reads it:
//
//	<id, 32 hex digits>-<time of the last part, Unix seconds in hex>-<MAC of both and the repository's name, 32 hex digits>
//
// An upload is one to a single repository, and ends when nothing comes for a day. That it was begun is written nowhere.
type Sessions struct{ Key []byte }

// Sign is the address of an upload to a repository.
func (s Sessions) Sign(repository, id string, now time.Time) string {
	at := strconv.FormatInt(now.Unix(), 16)
	return id + "-" + at + "-" + s.mac(repository, id, at)
}

// Verify gives the id of an upload by its address.
func (s Sessions) Verify(repository, address string, now time.Time) (id string, ok bool) {
	parts := strings.Split(address, "-")
	if len(parts) != 3 || !hmac.Equal([]byte(parts[2]), []byte(s.mac(repository, parts[0], parts[1]))) {
		return "", false
	}
	at, err := strconv.ParseInt(parts[1], 16, 64)
	return parts[0], err == nil && now.Sub(time.Unix(at, 0)) <= sessionLife
}

func (s Sessions) mac(repository, id, at string) string {
	mac := hmac.New(sha256.New, s.Key)
	fmt.Fprintf(mac, "oci upload 1\n%s\n%s\n%s", repository, id, at)
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

func newUploadID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// maxEnded is how many uploads that ended are remembered. One that is forgotten, or ended before the server started, begins anew when something is
// sent to it: that hurts nobody.
const maxEnded = 10_000

// ended are the uploads that were finished or cancelled last. Its zero value is ready.
type ended struct {
	mu    sync.Mutex
	ids   map[string]struct{}
	order list.List
}

func (e *ended) add(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ids == nil {
		e.ids = map[string]struct{}{}
	}
	if _, there := e.ids[id]; there {
		return
	}
	e.ids[id] = struct{}{}
	e.order.PushBack(id)
	if e.order.Len() > maxEnded {
		delete(e.ids, e.order.Remove(e.order.Front()).(string))
	}
}

func (e *ended) has(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, has := e.ids[id]
	return has
}
