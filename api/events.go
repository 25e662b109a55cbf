package api

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
)

// positions turn the place of an event into a text that tells nothing: the numbers of events count
// those of all models, and their gaps would say how much happens in the ones that a caller may not
// read. One block of AES over the number and zeros is different for each, and its zeros show
// whether a text is one of ours.
type positions struct{ cipher.Block }

// newPositions makes them with a key of 32 bytes, or with one that only this process has.
func newPositions(key []byte) positions {
	if len(key) != 32 {
		key = make([]byte, 32)
		rand.Read(key) // crypto/rand never fails
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has a length that AES has
	}
	return positions{block}
}

func (p positions) encode(seq uint64) string {
	var block [aes.BlockSize]byte
	binary.BigEndian.PutUint64(block[:], seq)
	p.Encrypt(block[:], block[:])
	return hex.EncodeToString(block[:])
}

func (p positions) decode(text string) (seq uint64, ok bool) {
	var block [aes.BlockSize]byte
	if n, err := hex.Decode(block[:], []byte(text[:min(len(text), 2*len(block))])); err != nil || n != len(block) || len(text) != 2*n {
		return 0, false
	}
	p.Decrypt(block[:], block[:])
	return binary.BigEndian.Uint64(block[:]), binary.BigEndian.Uint64(block[8:]) == 0
}

func (s *Server) listEvents(c echo.Context) error {
	if err := s.mayList(c); err != nil {
		return err
	}
	limit, err := intParam(c, "limit", registry.MaxPage)
	if err != nil {
		return err
	}
	// Only who may read all models may know how many events there are.
	all := access.Authorize(door.Identity(c), access.ReadDeliveries, nil) == nil
	after, err := s.eventPosition(c.QueryParam("after"), all)
	if err != nil {
		return err
	}
	events, err := s.Index.Events(c.Request().Context(), door.Identity(c), after, limit)
	if err != nil {
		return err
	}
	if n := len(events); n > 0 {
		// Also behind the last event that there is: that is where to look for the next one.
		link(c, "after", s.positions.encode(events[n-1].Seq))
	}
	if !all {
		for i := range events {
			events[i].Sinks, events[i].Seq = nil, 0
		}
	}
	return c.JSON(http.StatusOK, list[registry.Event]{events})
}

func (s *Server) eventPosition(text string, all bool) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	if seq, ok := s.positions.decode(text); ok {
		return seq, nil
	}
	seq, err := strconv.ParseUint(text, 10, 63)
	if err != nil || !all {
		return 0, registry.Invalid("after", "after is what the Link header of the page before said")
	}
	return seq, nil
}
