package gitrepo

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// Dir is the directory of the repositories.
func (s *Store) Dir() string { return s.dir }

// SetKeepAlive changes how often a waiting client hears from us.
func (s *Store) SetKeepAlive(every time.Duration) { s.keepAlive = every }

// SetFS makes the steps that change the disk go another way.
func (s *Store) SetFS(fsys durable.FS) { s.fsys = fsys }

// SetTimeSlack changes how long the times of files are not trusted.
func (s *Store) SetTimeSlack(d time.Duration) { s.snapshots.slack = d }

// Environment is that of every git.
func (s *Store) Environment() []string { return slices.Clone(s.env) }

// ListedByGit reports whether git has to list the refs of a repository.
func (s *Store) ListedByGit(ctx context.Context, r *Repository) bool {
	_, err := r.snapshot(ctx)
	return err != nil
}

// RefsSettled reports whether the files of the refs need not be read again until they change.
func (s *Store) RefsSettled(ctx context.Context, r *Repository) bool {
	one, err := r.snapshot(ctx)
	two, _ := r.snapshot(ctx)
	return err != nil || one == two
}

// AnswersMade is the number of answers to fetches that were made to be shared.
func (s *Store) AnswersMade() int {
	s.answers.mu.Lock()
	defer s.answers.mu.Unlock()
	return s.answers.made
}

// SharePush is what a push does to keep a repository as it is.
func (s *Store) SharePush(r *Repository) (unlock func()) { return s.share(r) }

// AnswerBytes is how much answers take on the disk.
func (s *Store) AnswerBytes() int64 {
	s.answers.mu.Lock()
	defer s.answers.mu.Unlock()
	return s.answers.disk
}

// ForgetAnswers forgets the answers that are kept.
func (s *Store) ForgetAnswers() {
	s.answers.drop(filepath.Join(s.dir, "acme/fraud.git"), nil)
}

// DirOf is where a Store keeps the repositories.
func DirOf(s *Store) string { return s.dir }

// SetCoarseTimes makes files look as on a file system that keeps whole seconds.
func (s *Store) SetCoarseTimes() {
	s.snapshots.lstat = func(path string) (fileStamp, error) {
		stamp, err := lstat(path)
		stamp.mtime -= stamp.mtime % int64(time.Second)
		stamp.ctime -= stamp.ctime % int64(time.Second)
		return stamp, err
	}
}
