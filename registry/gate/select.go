package gate

import (
	"time"

	"github.com/herdbook/herdbook/registry"
)

// Selected is what the gates of an environment look at of the evaluations of one commit.
type Selected struct {
	Total  int                // evaluations of the commit
	Whole  registry.Evidenced // what the evidence of the environment selects
	Slices []SliceSelected    // sorted by name; without evidence when there are more than [registry.MaxSlices]
}

// SliceSelected is the evidence of one slice of the data.
type SliceSelected struct {
	Name string
	registry.Evidenced
}

// Select finds what the gates of an environment look at among the evaluations of a version.
func Select(env *registry.Environment, evaluations []registry.Evaluation, now time.Time) *Selected {
	s := &Selected{Total: len(evaluations), Whole: env.Evidence.Select(evaluations, now)}
	if env.Slices == nil {
		return s
	}
	for _, name := range env.Slices.Names(env.Evidence, evaluations, now) {
		s.Slices = append(s.Slices, SliceSelected{Name: name})
	}
	s.eachSlice(env, func(of *registry.Evidence) registry.Evidenced { return of.Select(evaluations, now) })
	return s
}

// SelectIncumbent is Select for the version that runs there: of the slices that were found for the version in question.
func SelectIncumbent(env *registry.Environment, evaluations []registry.Evaluation, version *Selected, now time.Time) *Selected {
	s := &Selected{Total: len(evaluations), Whole: env.Evidence.Select(evaluations, now), Slices: version.named()}
	s.eachSlice(env, func(of *registry.Evidence) registry.Evidenced { return of.Select(evaluations, now) })
	return s
}

// Cataloged is what is known of the evaluations of a commit without reading them.
type Cataloged struct {
	*registry.Catalog
	// Load reads the evaluation of a number.
	Load func(number uint64) (*registry.Evaluation, error)
}

func (c Cataloged) find(of *registry.Evidence, now time.Time) (registry.Evidenced, error) {
	found := c.Catalog.Select(of, now)
	e := registry.Evidenced{Matched: found.Matched, Ambiguous: found.Ambiguous}
	if found.Number == 0 {
		return e, nil
	}
	var err error
	e.Evaluation, err = c.Load(found.Number)
	return e, err
}

// Select is [Select] that reads only what it finds.
func (c Cataloged) Select(env *registry.Environment, now time.Time) (*Selected, error) {
	s := &Selected{}
	if env.Slices != nil {
		for _, name := range c.Slices(env.Slices, env.Evidence, now) {
			s.Slices = append(s.Slices, SliceSelected{Name: name})
		}
	}
	return c.fill(s, env, now)
}

// SelectIncumbent is [SelectIncumbent] that reads only what it finds.
func (c Cataloged) SelectIncumbent(env *registry.Environment, version *Selected, now time.Time) (*Selected, error) {
	return c.fill(&Selected{Slices: version.named()}, env, now)
}

func (c Cataloged) fill(s *Selected, env *registry.Environment, now time.Time) (*Selected, error) {
	var err error
	find := func(of *registry.Evidence) registry.Evidenced {
		found, problem := c.find(of, now)
		if problem != nil {
			err = problem
		}
		return found
	}
	s.Total, s.Whole = c.Len(), find(env.Evidence)
	s.eachSlice(env, find)
	return s, err
}

// named are the same slices, without what was found for them.
func (s *Selected) named() []SliceSelected {
	var names []SliceSelected
	for _, of := range s.Slices {
		names = append(names, SliceSelected{Name: of.Name})
	}
	return names
}

func (s *Selected) eachSlice(env *registry.Environment, find func(*registry.Evidence) registry.Evidenced) {
	if len(s.Slices) > registry.MaxSlices {
		return // nobody looks at them
	}
	for i := range s.Slices {
		s.Slices[i].Evidenced = find(env.Evidence.OfSlice(s.Slices[i].Name))
	}
}
