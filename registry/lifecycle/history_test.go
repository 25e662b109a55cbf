package lifecycle_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// past is what a random history should have led to, worked out without the code that is tested.
type past struct {
	*site
	*rand.Rand
	m registry.Model

	commits  []registry.ObjectID
	parents  map[registry.ObjectID][]registry.ObjectID
	tagged   map[registry.ObjectID]registry.Tag
	versions []registry.VersionRecord
	edges    map[registry.Tag][]string // what each version came from
	f1       map[registry.Tag]float64  // of the newest evaluation
	states   map[registry.Tag]registry.VersionState
	current  map[registry.EnvironmentName]registry.Tag
	held     map[registry.EnvironmentName][]registry.Tag
	frozen   map[registry.EnvironmentName]bool

	rollbacks int // that were made
}

const historyPolicy = "environments:\n  staging:\n    gates: [\"metrics.f1 >= 0.8\"]\n  production:\n    after: staging\n    gates: [\"metrics.f1 >= 0.9\"]\n"

func newPast(t *testing.T, seed uint64) *past {
	s, m := prepared(t, historyPolicy)
	return &past{
		site: s, Rand: rand.New(rand.NewPCG(seed, seed)), m: m, parents: map[registry.ObjectID][]registry.ObjectID{}, tagged: map[registry.ObjectID]registry.Tag{},
		edges: map[registry.Tag][]string{}, f1: map[registry.Tag]float64{}, states: map[registry.Tag]registry.VersionState{},
		current: map[registry.EnvironmentName]registry.Tag{}, held: map[registry.EnvironmentName][]registry.Tag{}, frozen: map[registry.EnvironmentName]bool{},
	}
}

// grow adds a commit to those that are there, sometimes one that joins two.
func (p *past) grow() {
	var parents []registry.ObjectID
	for range min(1+p.IntN(4)/3, len(p.commits)) {
		if c := p.commits[p.IntN(len(p.commits))]; !slices.Contains(parents, c) {
			parents = append(parents, c)
		}
	}
	n := len(p.commits)
	var in strings.Builder
	fmt.Fprintf(&in, "commit refs/heads/c%d\nmark :1\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 1\nc\n", n)
	for i, parent := range parents {
		fmt.Fprintf(&in, "%s %s\n", []string{"from", "merge"}[min(i, 1)], parent)
	}
	// Some cards name a base and a dataset.
	text := "# " + fmt.Sprint(n) + "\n"
	if n%3 == 0 {
		text = "---\nbase_model: other/base\ndatasets: [calls]\n---\n" + text
	}
	fmt.Fprintf(&in, "deleteall\nM 100644 inline README.md\ndata %d\n%s\nget-mark :1\n", len(text), text)
	id := registry.ObjectID(p.gitInput(p.m.Name, in.String(), "fast-import", "--quiet"))
	p.commits, p.parents[id] = append(p.commits, id), parents
}

// tagSome publishes a version of a commit that has none, and works out what it came from.
func (p *past) tagSome() {
	commit := p.commits[p.IntN(len(p.commits))]
	tag := registry.MustTag(fmt.Sprintf("v%d.%d.%d", p.IntN(3), p.IntN(4), p.IntN(10)))
	if _, there := p.tagged[commit]; there || p.states[tag] != "" {
		return
	}
	p.tag(p.m.Name, tag.String(), commit)
	if got := publishedTags(p.reconcile(p.m)); !slices.Equal(got, []string{tag.String()}) {
		p.tb.Fatalf("%s: published %v", tag, got)
	}
	var previous registry.Tag
	for _, v := range p.versions {
		if t := v.Version.Tag; t.Compare(tag) < 0 && (previous.IsZero() || t.Compare(previous) > 0) {
			previous = t
		}
	}
	var edges []string
	if !previous.IsZero() {
		edges = append(edges, "derived_from "+previous.String()+" previous")
	}
	met := map[registry.ObjectID]bool{}
	var look func(registry.ObjectID)
	look = func(id registry.ObjectID) {
		for _, parent := range p.parents[id] {
			if met[parent] {
				continue
			}
			met[parent] = true
			if t, ok := p.tagged[parent]; !ok {
				look(parent)
			} else if t != previous {
				edges = append(edges, "derived_from "+t.String()+" ancestor")
			}
		}
	}
	look(commit)
	if slices.Index(p.commits, commit)%3 == 0 {
		edges = append(edges, "derived_from model:other/base ", "used dataset:calls ")
	}
	slices.Sort(edges)
	p.edges[tag] = edges
	p.tagged[commit] = tag
	p.versions = append(p.versions, p.version(p.m, tag.String()))
	p.states[tag] = registry.Published
}

// some is one of the versions.
func (p *past) some() registry.VersionRecord { return p.versions[p.IntN(len(p.versions))] }

func (p *past) step() {
	env := []registry.EnvironmentName{staging, production}[p.IntN(2)]
	switch what := p.IntN(20); {
	case what < 3 || len(p.commits) == 0:
		p.grow()
	case what < 6 || len(p.versions) == 0:
		p.tagSome()
	case what < 10:
		v := p.some()
		p.f1[v.Version.Tag] = 0.78 + float64(p.IntN(22))/100
		p.evaluate(p.m, v, p.f1[v.Version.Tag])
	case what < 11:
		p.changeState()
	case what < 12:
		p.frozen[env] = p.IntN(5) == 0
		if _, err := p.Freeze(p.tb.Context(), by("grace"), p.m, env, p.frozen[env], "r"); err != nil && !errors.Is(err, registry.ErrConflict) {
			p.tb.Fatal(err)
		}
	case what < 17:
		p.tryPromotion(env, p.some().Version.Tag)
	default:
		tag := p.some().Version.Tag
		if held := p.held[env]; len(held) > 0 && p.IntN(4) > 0 {
			tag = held[p.IntN(len(held))]
		}
		p.tryRollback(env, tag)
	}
}

func (p *past) changeState() {
	tag := p.some().Version.Tag
	to := []registry.VersionState{registry.Published, registry.Deprecated, registry.Quarantined}[p.IntN(3)]
	if p.states[tag] == registry.Quarantined {
		to = registry.Published
	}
	if p.states[tag] == to {
		return
	}
	p.state(p.m, tag.String(), to)
	p.states[tag] = to
}

// may is whether a version may go to an environment.
func (p *past) may(env registry.EnvironmentName, tag registry.Tag) bool {
	floor := 0.8
	if env == production {
		floor = 0.9
	}
	f1, measured := p.f1[tag]
	return !p.frozen[env] && p.states[tag] != registry.Quarantined && p.current[env] != tag && measured && f1 >= floor &&
		(env == staging || slices.Contains(p.held[staging], tag))
}

func (p *past) tryPromotion(env registry.EnvironmentName, tag registry.Tag) {
	want := p.may(env, tag)
	_, err := p.Promote(p.tb.Context(), by("ada"), p.m, env, lifecycle.Promotion{Version: tag})
	if (err == nil) != want {
		p.tb.Fatalf("Promote(%s, %s) = %v, want success %t: f1 %v, %s, frozen %t, there %s", env, tag, err, want, p.f1[tag], p.states[tag], p.frozen[env], p.current[env])
	}
	if want {
		p.current[env] = tag
		p.held[env] = append(p.held[env], tag)
	}
}

func (p *past) tryRollback(env registry.EnvironmentName, tag registry.Tag) {
	want := p.states[tag] != registry.Quarantined && slices.Contains(p.held[env], tag) && p.current[env] != tag
	_, err := p.RollBack(p.tb.Context(), by("ada"), p.m, env, tag, "")
	if (err == nil) != want {
		p.tb.Fatalf("RollBack(%s, %s) = %v, want success %t: %s, there %s, held %v", env, tag, err, want, p.states[tag], p.current[env], p.held[env])
	}
	if want {
		p.current[env] = tag
		p.rollbacks++
	}
}

// check compares what is there with what should be.
func (p *past) check(what string) {
	p.tb.Helper()
	for _, v := range p.versions {
		tag := v.Version.Tag
		edges := []string{}
		for _, e := range p.site.edges(registry.VersionNodeID(p.m.ID, tag)) {
			to := e.To
			if _, t, ok := registry.ParseVersionNodeID(to); ok {
				to = t.String()
			}
			if e.From == registry.VersionNodeID(p.m.ID, tag) {
				edges = append(edges, fmt.Sprintf("%s %s %s", e.Kind, to, e.Relation))
			}
		}
		slices.Sort(edges)
		if diff := cmp.Diff(p.edges[tag], edges, cmpopts.EquateEmpty()); diff != "" {
			p.tb.Errorf("%s, what %s came from (-want +got):\n%s", what, tag, diff)
		}
		if got := p.version(p.m, tag.String()).State; got != p.states[tag] {
			p.tb.Errorf("%s, %s is %s, want %s", what, tag, got, p.states[tag])
		}
	}
	for _, env := range []registry.EnvironmentName{staging, production} {
		want := p.current[env].String()
		if got := p.in(p.m, env); got != want {
			p.tb.Errorf("%s, in %s is %q, want %q", what, env, got, want)
		}
	}
}

// Random histories of commits, merges, versions, evaluations, states and environments lead to what they should, also after the index was
// deleted, and in a copy of the repository.
func TestRandomHistories(t *testing.T) {
	var promotions, rollbacks int
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPast(t, seed)
			for range 90 {
				p.step()
			}
			p.check("in the end")
			promotions, rollbacks = promotions+len(p.held[staging])+len(p.held[production]), rollbacks+p.rollbacks
			if t.Failed() {
				return
			}
			p.mirror()
			want := p.story(p.m)

			p.close()
			if err := os.Remove(filepath.Join(p.dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			p.site = openDir(t, p.dir)
			p.check("rebuilt")
			if diff := cmp.Diff(want, p.story(p.m), named); diff != "" {
				t.Errorf("rebuilt (-before +after):\n%s", diff)
			}

			dir := t.TempDir()
			p.clone(p.m, dir, p.m.Name)
			there := openDir(t, dir)
			if err := there.look(); err != nil {
				t.Fatalf("look = %v", err)
			}
			if diff := cmp.Diff(want, there.story(there.reload(p.m)), named, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("in a copy (-here +there):\n%s", diff)
			}
		})
	}
	if promotions < 5 || rollbacks < 1 {
		t.Errorf("the histories had %d promotions and %d rollbacks; too little happened", promotions, rollbacks)
	}
}

// Of many that promote at once, each against what they saw, one wins each round, and the losers are told by whom.
func TestPromotionRace(t *testing.T) {
	const clients, rounds = 8, 5
	s, m := prepared(t, "environments: {staging: {}}")
	var tags []registry.Tag
	for i := range clients {
		tags = append(tags, s.release(m, fmt.Sprintf("v1.%d.0", i)).Version.Tag)
	}
	current := registry.Tag{}
	for round := range rounds {
		var wait sync.WaitGroup
		errs := make([]error, clients)
		for i := range clients {
			if tags[i] == current {
				errs[i] = registry.ErrConflict
				continue
			}
			wait.Go(func() {
				_, errs[i] = s.Promote(t.Context(), by(fmt.Sprintf("client%d", i)), m, staging, lifecycle.Promotion{Version: tags[i], Replaces: &current})
			})
		}
		wait.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: both %s and %s won", round, tags[winner], tags[i])
			case err == nil:
				winner = i
			case !errors.Is(err, registry.ErrConflict):
				t.Fatalf("round %d: %s = %v", round, tags[i], err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won: %v", round, errs)
		}
		for i, err := range errs {
			if tags[i] == current || i == winner {
				continue
			}
			if text := err.Error(); !strings.Contains(text, tags[winner].String()) || !strings.Contains(text, fmt.Sprintf("client%d", winner)) {
				t.Errorf("round %d: %s lost with %q, which does not name the winner %s by client%d", round, tags[i], text, tags[winner], winner)
			}
		}
		if current = tags[winner]; s.in(m, staging) != current.String() {
			t.Errorf("round %d: in staging is %s, want the winner %s", round, s.in(m, staging), current)
		}
		if got := len(s.history(m, staging)); got != round+1 {
			t.Errorf("round %d: %d changes of staging, want one each round", round, got)
		}
	}
}
