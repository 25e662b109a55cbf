package gitrepo

import (
	"time"

	"github.com/herdbook/herdbook/storage/internal/durable"
)

// Dir is the directory of the repositories.
func (s *Store) Dir() string { return s.dir }

// SetKeepAlive changes how often a waiting client hears from us.
func (s *Store) SetKeepAlive(every time.Duration) { s.keepAlive = every }

// SetFS makes the steps that change the disk go another way.
func (s *Store) SetFS(fsys durable.FS) { s.fsys = fsys }
