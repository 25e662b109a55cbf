package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/herdbook/herdbook/registry"
)

// From this much on, in one of the two, it is worth to have packs in a bitmap: with one, a clone copies a pack
// instead of walking all objects, for a third to a half of the CPU.
const (
	bitmapBytes   = 1 << 20
	bitmapObjects = 300
)

// maxLooseRefs is the number of refs in files of their own from which on they are put into one.
const maxLooseRefs = 500

// packSet is what Repack knows of some packs.
type packSet struct {
	packs   int
	bytes   int64
	objects int64
}

func (s packSet) large() bool { return s.bytes >= bitmapBytes || s.objects >= bitmapObjects }

// packsOf counts the packs of a repository: those in a bitmap, and the others, but for the one with what no ref
// reaches.
// Source: gitformat-pack(5), "pack-*.mtimes files".
func packsOf(entries []os.DirEntry) (mapped, others packSet, indexed bool, err error) {
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
		indexed = indexed || strings.HasPrefix(e.Name(), "multi-pack-index-") && strings.HasSuffix(e.Name(), ".bitmap")
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		base := strings.TrimSuffix(e.Name(), ext)
		if ext != ".pack" && ext != ".idx" || !names[base+".pack"] || !names[base+".idx"] || names[base+".mtimes"] {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return mapped, others, indexed, err
		}
		set := &others
		if names[base+".bitmap"] {
			set = &mapped
		}
		if ext == ".pack" {
			set.packs++
			set.bytes += info.Size()
		} else {
			set.objects += indexObjects(info.Size())
		}
	}
	return mapped, others, indexed, nil
}

// indexObjects is how many objects the index of a pack has, by its length.
// Source: gitformat-pack(5), "Version 2 pack-*.idx files": a header, 256 numbers, 28 bytes an object, two checksums.
func indexObjects(size int64) int64 { return max(0, size-8-256*4-2*20) / 28 }

// repacking is one way to repack.
type repacking int

const (
	noRepack repacking = iota
	joinAll            // into one pack with a bitmap
	joinSome           // so that the sizes form a geometric series
	joinSomeMapped
)

// chooseRepack decides from the packs. All are joined when those outside the bitmap are a quarter of those in it, so that each
// object is copied a few times at most, however much is pushed; and in a repository larger than most never, because pushes
// wait meanwhile.
func chooseRepack(mapped, others packSet, indexed bool, maxPacks int, most int64) repacking {
	grown := 4*others.bytes >= mapped.bytes || 4*others.objects >= mapped.objects
	many := mapped.packs+others.packs > maxPacks
	switch {
	case mapped.bytes+others.bytes > most:
		if many || mapped.packs == 0 && !indexed && others.large() {
			return joinSomeMapped
		}
	case others.large() && grown:
		return joinAll
	case many:
		return joinSome
	}
	return noRepack
}

func (k repacking) args() []string {
	args := []string{"repack", "-d", "-l", "-q"}
	switch k {
	case joinAll:
		// What no ref reaches goes into a pack of its own.
		return append(args, "--cruft", "-b")
	case joinSomeMapped:
		return append(args, "--geometric=2", "--write-midx", "--write-bitmap-index")
	}
	return append(args, "--geometric=2")
}

// Repack keeps a repository fast to read: it joins packs, makes the bitmap by which clones are cheap, and puts refs into one
// file when there are many. To ask when there is nothing to do is cheap. No object is lost, not even one that no ref reaches. Pushes
// wait meanwhile; and when one runs already, Repack does nothing and leaves it for another time.
func (r *Repository) Repack(ctx context.Context) (repacked bool, err error) {
	ctx, done, err := r.store.begin(ctx, open)
	if err != nil {
		return false, err
	}
	defer done()
	if err := r.mustExist(); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(filepath.Join(r.path, "objects", "pack"))
	if err != nil {
		return false, err
	}
	mapped, others, indexed, err := packsOf(entries)
	if err != nil {
		return false, err
	}
	kind := chooseRepack(mapped, others, indexed, r.store.cfg.MaxPacks, r.store.cfg.MaxRepackBytes)
	snap, err := r.snapshotOrGit(ctx)
	if err != nil {
		return false, err
	}
	packRefs := snap != nil && snap.files.root.loose() > maxLooseRefs
	if kind == noRepack && !packRefs {
		return false, nil
	}
	// While a pack arrives, "git repack -d" may delete one whose objects it did not copy.
	lock := r.store.writerLock(r)
	if !lock.TryLock() {
		return false, nil
	}
	defer lock.Unlock()
	if kind != noRepack {
		before, err := r.snapshotOrGit(ctx)
		if err == nil {
			err = r.repack(ctx, kind)
		}
		if err != nil {
			return false, fmt.Errorf("repack the repository of %s: %w", r.name, err)
		}
		if kind == joinAll {
			if err := r.noteJoined(ctx, before); err != nil && ctx.Err() == nil {
				r.store.log.WarnContext(ctx, "the pack of a repack is not noted", "model", r.name, "reason", err.Error())
			}
		}
	}
	if packRefs {
		if err := r.packRefs(ctx, snap); err != nil {
			return false, fmt.Errorf("pack the refs of %s: %w", r.name, err)
		}
	}
	return true, nil
}

func (r *Repository) repack(ctx context.Context, kind repacking) error {
	// We alone write: what a program that was killed left is nobody's.
	if err := r.store.removeLeftoversFrom(r.path, "objects/pack"); err != nil {
		return err
	}
	cmd := r.store.command(ctx, r.path, kind.args()...)
	cmd.holdLock(r.store)
	if err := cmd.run(); err != nil {
		// On a full disk what it left would keep the disk full.
		return errors.Join(err, r.store.removeLeftoversFrom(r.path, "objects/pack"))
	}
	return r.Sync(ctx, nil)
}

// packRefs puts all refs into packed-refs. The files of single refs go only when that is durable.
func (r *Repository) packRefs(ctx context.Context, snap *snapshot) error {
	// Killed half-way it would leave its locks. But it is short, and better done.
	life, cancel := r.store.untilKilled(context.WithoutCancel(ctx))
	defer cancel()
	for _, prune := range []string{"--no-prune", "--prune"} {
		cmd := r.store.command(life, r.path, "pack-refs", "--all", prune)
		cmd.holdLock(r.store)
		if err := cmd.run(); err != nil {
			return err
		}
		if err := r.store.fsys.SyncDir(r.path); err != nil {
			return err
		}
	}
	updates := make([]registry.RefUpdate, len(snap.refs))
	for i, ref := range snap.refs {
		updates[i].Ref = ref.name
	}
	return r.Sync(life, updates)
}
