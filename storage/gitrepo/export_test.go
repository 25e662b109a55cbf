package gitrepo

import "time"

// Dir is the directory of the repositories.
func (s *Store) Dir() string { return s.dir }

// SetKeepAlive changes how often a waiting client hears from us.
func (s *Store) SetKeepAlive(every time.Duration) { s.keepAlive = every }
