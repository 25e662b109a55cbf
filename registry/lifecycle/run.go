package lifecycle

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/herdbook/herdbook/registry"
)

// sweepEvery is the time between two looks at all models.
const sweepEvery = time.Minute

// Start does what has to be done before the server answers: it takes over repositories that were put
// into the directory, and brings those models up to date whose pushes a crash broke off. All others
// are looked at by [Service.Run].
func (s *Service) Start(ctx context.Context) error {
	imported, err := s.importNew(ctx)
	if err != nil {
		return err
	}
	signatures, err := s.Index.Signatures(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	maps.Copy(s.signatures, signatures)
	s.mu.Unlock()
	broken, err := s.Index.WithIntents(ctx)
	if err != nil {
		return err
	}
	return s.lookAtAll(ctx, append(imported, broken...), 0)
}

// sweep looks at every model, and keeps what their refs looked like for the next start.
func (s *Service) sweep(ctx context.Context) error {
	models, err := s.Index.AllModels(ctx)
	if err != nil {
		return err
	}
	return errors.Join(s.lookAtAll(ctx, models, s.FullShare), s.keepSignatures(ctx))
}

// keepSignatures writes down what the refs of all models looked like when they were reconciled.
func (s *Service) keepSignatures(ctx context.Context) error {
	s.mu.Lock()
	now := maps.Clone(s.signatures)
	s.mu.Unlock()
	return s.Index.KeepSignatures(ctx, now)
}

// lookAtAll looks at models, and at a random share of them as if all was new. A failure of one does not
// keep the others from it.
func (s *Service) lookAtAll(ctx context.Context, models []registry.Model, share float64) error {
	for _, m := range models {
		if err := s.lookAt(ctx, m, rand.Float64() < share); err != nil && !errors.Is(err, registry.ErrNotFound) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.Log.ErrorContext(ctx, "a model cannot be reconciled", "model", m.Name, "error", err.Error())
		}
	}
	return nil
}

// lookAt reconciles a model if one of its refs is another than at the last look, or when it is told to, and tidies its
// repository.
func (s *Service) lookAt(ctx context.Context, m registry.Model, fully bool) error {
	repo, err := s.openOf(ctx, m)
	if err != nil {
		return err
	}
	// Before reconciling, so that a ref that moves meanwhile is seen the next time.
	signature, err := repo.Signature(ctx)
	if err != nil {
		return err
	}
	intents, err := s.Index.Intents(ctx, m.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	same := s.signatures[m.ID] == signature && !fully
	s.mu.Unlock()
	if same && len(intents) == 0 {
		// No ref moved, but time went on: evidence may have become too old.
		unlock := s.locks.lock(m.ID)
		defer unlock()
		_, err := s.settle(ctx, m.ID, nil)
		return err
	}
	report, err := s.Reconcile(ctx, m.ID)
	if err != nil || report.Pending {
		return err
	}
	if _, err := repo.Repack(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signatures[m.ID] = signature
	return nil
}

// openOf opens the repository of a model, unless it was deleted.
func (s *Service) openOf(ctx context.Context, m registry.Model) (Repository, error) {
	unlock := s.locks.lock(m.ID)
	defer unlock()
	if _, err := s.Index.ModelByID(ctx, m.ID); err != nil {
		return nil, err
	}
	return s.Repositories.Open(ctx, m.Name)
}

// Run does what follows the commits until ctx ends: it makes images, writes records into the
// repositories, and looks at all models each minute. It returns when all of that has stopped
// and the last records are written.
func (s *Service) Run(ctx context.Context) {
	var wait sync.WaitGroup
	wait.Go(func() { s.onPoke(ctx, s.images, 0, "make images", s.BuildImages) })
	wait.Go(func() { s.onPoke(ctx, s.statements, statementsRest, "state what was measured", s.AttestEvaluations) })
	wait.Go(func() { s.ReadTensors(ctx) })
	wait.Go(func() {
		s.logged(ctx, "look at the models", s.sweep)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				s.logged(ctx, "sweep the models", s.sweep)
			}
		}
	})
	s.onPoke(ctx, s.records, recordsRest, "write records", s.Mirror)
	wait.Wait()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	s.logged(stop, "write the last records", s.Mirror)
	s.logged(stop, "keep what the refs looked like", s.keepSignatures)
}

// retryAfter is the time until work that failed is done again.
const retryAfter = 5 * time.Second

// Each change of the records in a repository costs a git process, and each statement some files that are synced: what comes within such a
// time is written at once. Records follow the journal within two seconds all the same.
const (
	recordsRest    = time.Second
	statementsRest = 10 * time.Second
)

// onPoke does the work once, and again after each poke and some time after a failure. Between two beginnings lies rest at least.
func (s *Service) onPoke(ctx context.Context, poked <-chan struct{}, rest time.Duration, what string, work func(context.Context) error) {
	for {
		rested := time.After(rest)
		var again <-chan time.Time
		if !s.logged(ctx, what, work) {
			again = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
			return
		case <-rested:
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-poked:
		}
	}
}

// logged does work and reports whether it was done.
func (s *Service) logged(ctx context.Context, what string, work func(context.Context) error) bool {
	err := work(ctx)
	if err != nil && ctx.Err() == nil {
		s.Log.ErrorContext(ctx, "background work", "work", what, "error", err.Error())
	}
	return err == nil
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
