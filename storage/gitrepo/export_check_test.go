package gitrepo

// OnLook calls fn before each look at a file that holds refs, with its path.
func (s *Store) OnLook(fn func(path string)) {
	look := s.snapshots.lstat
	s.snapshots.lstat = func(path string) (fileStamp, error) {
		fn(path)
		return look(path)
	}
}

// Share is what those do who write to a repository.
func (s *Store) Share(r *Repository) (done func()) { return s.share(r) }

// SomebodyWaits reports whether somebody waits for those to end who write to a repository.
func (s *Store) SomebodyWaits(r *Repository) bool {
	lock := s.writerLock(r)
	if lock.TryRLock() {
		lock.RUnlock()
		return false
	}
	return true
}
