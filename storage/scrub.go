package storage

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"os"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/storage/blob"
)

// scrubFile says how far the scrub is: JSON, see scrubState. It is written without waiting for the disk: what is lost
// is read once more.
const scrubFile = "scrub.json"

// scrubState is how far a round is.
type scrubState struct {
	StartedAt time.Time     `json:"started_at"`
	After     digest.Digest `json:"after,omitempty"` // the last blob that was read
}

// ScrubStats are what the scrub has done since the directory was opened.
type ScrubStats struct {
	Bytes   atomic.Int64 // that were read
	Damaged atomic.Int64 // blobs that were found damaged, and set aside
	Rounds  atomic.Int64 // that were finished
}

// scrubPause is how long a scrub that failed waits, and how often it writes down how far it is.
const scrubPause = time.Minute

// Scrub reads every blob once in each period and compares it with its digest, until ctx ends. A damaged one is set aside and
// logged with the models that own it: nobody gets it any more, and whoever has the content mends it by sending it again. The
// reading is spread evenly over the period, and goes on where it was after a restart.
func (d *Data) Scrub(ctx context.Context, period time.Duration, log *slog.Logger) {
	for ctx.Err() == nil {
		if err := d.scrubRound(ctx, period, log); err != nil && ctx.Err() == nil {
			log.ErrorContext(ctx, "the files of the store cannot be checked", "error", err.Error())
			sleep(ctx, scrubPause)
		}
	}
}

func sleep(ctx context.Context, t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// share is the part of all blobs that comes before a digest: digests are spread evenly.
func share(dgst digest.Digest) float64 {
	head, err := hex.DecodeString(dgst.Encoded()[:16])
	if err != nil {
		return 0
	}
	return float64(binary.BigEndian.Uint64(head)) / math.MaxUint64
}

func (d *Data) scrubRound(ctx context.Context, period time.Duration, log *slog.Logger) error {
	state := d.readScrub()
	if state.After != "" {
		// The time in which the server did not run is not made up for.
		if due := time.Duration(share(state.After) * float64(period)); time.Since(state.StartedAt) > due {
			state.StartedAt = time.Now().Add(-due)
		}
	} else {
		state.StartedAt = time.Now()
	}
	_, bytes, err := d.Blobs.Usage(ctx)
	if err != nil {
		return err
	}
	// A big file is read at twice the speed that the period asks for, and not all at once.
	pace := newPace(max(paceBurst, int64(2*float64(bytes)/period.Seconds())))
	written := time.Now()
	err = d.Blobs.Walk(ctx, func(b blob.Descriptor, _ time.Time) error {
		if b.Digest <= state.After {
			return nil
		}
		sleep(ctx, time.Until(state.StartedAt.Add(time.Duration(share(b.Digest)*float64(period)))))
		if err := d.scrub(ctx, b.Digest, pace, log); err != nil {
			return err
		}
		state.After = b.Digest
		if time.Since(written) > scrubPause {
			written = time.Now()
			return d.writeScrub(state)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, d.writeScrub(state))
	}
	sleep(ctx, time.Until(state.StartedAt.Add(period)))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.Scrubbed.Rounds.Add(1)
	return d.writeScrub(scrubState{})
}

func (d *Data) scrub(ctx context.Context, dgst digest.Digest, pace pace, log *slog.Logger) error {
	err := d.Blobs.Verify(ctx, dgst, func(n int) error {
		d.Scrubbed.Bytes.Add(int64(n))
		return pace.wait(ctx, n)
	})
	switch {
	case errors.Is(err, blob.ErrNotFound):
		return nil // deleted since
	case errors.Is(err, blob.ErrDamaged):
		d.Scrubbed.Damaged.Add(1)
		owners, ownersErr := d.Index.Owners(ctx, dgst.String())
		log.ErrorContext(ctx, "a file is damaged and is set aside; send it again: git lfs push --all, or push the commit that has it",
			"digest", dgst, "models", owners, "reason", err.Error())
		return ownersErr
	case err != nil && ctx.Err() == nil:
		log.ErrorContext(ctx, "a file cannot be read; look at the disk", "digest", dgst, "error", err.Error())
		return nil
	}
	return err
}

func (d *Data) readScrub() scrubState {
	var state scrubState
	text, err := os.ReadFile(d.path(scrubFile))
	if err != nil || json.Unmarshal(text, &state) != nil || state.After != "" && state.After.Validate() != nil {
		return scrubState{}
	}
	return state
}

func (d *Data) writeScrub(state scrubState) error {
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	part := d.path(scrubFile + ".tmp")
	if err := os.WriteFile(part, text, secretPerm); err != nil {
		return err
	}
	return os.Rename(part, d.path(scrubFile))
}
