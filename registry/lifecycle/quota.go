package lifecycle

import (
	"context"
	"sync"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// quotas remembers for a moment how much is used of each quota, because to add that up asks for every model.
type quotas struct {
	mu   sync.Mutex
	used []quotaUse // as Config.Quotas
}

type quotaUse struct {
	at    time.Time // when it was added up; what came since is counted too
	bytes int64
}

// quotaAge is how long a sum is good for.
const quotaAge = 10 * time.Second

// CheckQuota reports whether a model or a repository may own so many bytes more: a [registry.QuotaError] says that it may not. Uploads that
// run at the same time may exceed a quota by what they bring.
func (s *Service) CheckQuota(ctx context.Context, name string, bytes int64) error {
	if len(s.Quotas) == 0 || bytes <= 0 {
		return nil
	}
	s.quotas.mu.Lock()
	defer s.quotas.mu.Unlock()
	for i, q := range s.Quotas {
		if !q.Covers(name) {
			continue
		}
		used, err := s.quotaUse(ctx, i)
		if err != nil {
			return err
		}
		if bytes > q.Bytes-used { // a sum might overflow
			return &registry.QuotaError{Quota: q, UsedBytes: used, WantedBytes: bytes}
		}
	}
	return nil
}

// quotaUse is how much is used of a quota.
func (s *Service) quotaUse(ctx context.Context, i int) (int64, error) {
	if s.quotas.used == nil {
		s.quotas.used = make([]quotaUse, len(s.Quotas))
	}
	use := &s.quotas.used[i]
	if time.Since(use.at) < quotaAge {
		return use.bytes, nil
	}
	models, err := s.Index.AllModels(ctx)
	if err != nil {
		return 0, err
	}
	owned, err := s.Index.Usages(ctx)
	if err != nil {
		return 0, err
	}
	*use = quotaUse{at: time.Now()}
	for _, m := range models {
		if s.Quotas[i].Covers(m.Name.String()) {
			use.bytes += owned[m.ID].LogicalBytes
		}
	}
	repositories, err := s.Index.Repositories(ctx)
	if err != nil {
		return 0, err
	}
	for _, r := range repositories {
		if s.Quotas[i].Covers(r.Name) {
			use.bytes += owned[r.ID].LogicalBytes
		}
	}
	return use.bytes, nil
}

// counted adds to the quotas what a model has come to own.
func (q *quotas) counted(all []registry.Quota, name string, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.used {
		if all[i].Covers(name) {
			q.used[i].bytes += bytes
		}
	}
}
