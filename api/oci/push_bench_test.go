package oci_test

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/apitest"
)

// BenchmarkPushMany pushes small layers, eight at a time.
func BenchmarkPushMany(b *testing.B) {
	s := apitest.Start(b)
	content := bytesOf(64<<10, 1)
	binary.BigEndian.PutUint64(content, uint64(b.N))
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	work := make(chan int)
	done := make(chan error, 8)
	for range 8 {
		go func() {
			var failed error
			for i := range work {
				layer := append([]byte(fmt.Sprint(b.N, i)), content...)
				r, err := http.NewRequest("POST", s.URL+"/v2/team/many/blobs/uploads/?digest="+digest.FromBytes(layer).String(), strings.NewReader(string(layer)))
				if err == nil {
					r.Header.Set("Authorization", "Bearer "+s.Token)
					var a *http.Response
					if a, err = http.DefaultTransport.RoundTrip(r); err == nil {
						if a.StatusCode != http.StatusCreated {
							err = fmt.Errorf("POST = %s", a.Status)
						}
						a.Body.Close()
					}
				}
				if err != nil {
					failed = err
				}
			}
			done <- failed
		}()
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	for range 8 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
