package registry_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/herdbook/herdbook/registry"
)

func tags(list string) []registry.Tag {
	var parsed []registry.Tag
	for text := range strings.FieldsSeq(list) {
		parsed = append(parsed, registry.MustTag(text))
	}
	return parsed
}

func spell(list []registry.Tag) string {
	var texts []string
	for _, tag := range list {
		texts = append(texts, tag.String())
	}
	return strings.Join(texts, " ")
}

func promote(tag string, automatic bool) registry.EnvironmentChange {
	return registry.EnvironmentChange{Kind: registry.Promotion, Version: registry.MustTag(tag), Automatic: automatic}
}

func rollback(tag string, automatic bool) registry.EnvironmentChange {
	return registry.EnvironmentChange{Kind: registry.Rollback, Version: registry.MustTag(tag), Automatic: automatic}
}

func TestEnvironmentApply(t *testing.T) {
	const person, server = false, true
	tests := []struct {
		name         string
		changes      []registry.EnvironmentChange
		now          string
		held, barred string
	}{
		{"nothing", nil, "", "", ""},
		{"a promotion", []registry.EnvironmentChange{promote("v1.0.0", server)}, "v1.0.0", "v1.0.0", ""},
		{"two", []registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", person)}, "v1.1.0", "v1.0.0 v1.1.0", ""},
		{"a rollback bars what leaves", []registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", person)}, "v1.0.0", "v1.0.0 v1.1.0", "v1.1.0"},
		{
			"so does one by the server",
			[]registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", server)},
			"v1.0.0", "v1.0.0 v1.1.0", "v1.1.0",
		},
		{
			"a person lifts the bar",
			[]registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", person), promote("v1.1.0", person)},
			"v1.1.0", "v1.0.0 v1.1.0", "",
		},
		{
			"only of what is promoted",
			[]registry.EnvironmentChange{
				promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", server),
				promote("v1.2.0", server), rollback("v1.0.0", server), promote("v1.1.0", person),
			},
			"v1.1.0", "v1.0.0 v1.1.0 v1.2.0", "v1.2.0",
		},
		{
			"the next version lifts no bar",
			[]registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", person), promote("v1.2.0", server)},
			"v1.2.0", "v1.0.0 v1.1.0 v1.2.0", "v1.1.0",
		},
		{
			"barred once, however often it leaves",
			[]registry.EnvironmentChange{
				promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", server),
				rollback("v1.1.0", server), rollback("v1.0.0", server),
			},
			"v1.0.0", "v1.0.0 v1.1.0", "v1.1.0 v1.0.0",
		},
		{
			"a rollback to what is barred does not lift the bar",
			[]registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", person), rollback("v1.1.0", person)},
			"v1.1.0", "v1.0.0 v1.1.0", "v1.1.0 v1.0.0",
		},
		{"a promotion bars nothing", []registry.EnvironmentChange{promote("v2.0.0", person), promote("v1.0.0", person)}, "v1.0.0", "v2.0.0 v1.0.0", ""},
		{"a rollback of nothing bars nothing", []registry.EnvironmentChange{rollback("v1.0.0", person)}, "v1.0.0", "v1.0.0", ""},
	}
	for _, tt := range tests {
		var s registry.EnvironmentState
		for _, c := range tt.changes {
			s.Apply(c)
		}
		if s.Version().String() != tt.now || spell(s.Held) != tt.held || spell(s.Barred) != tt.barred {
			t.Errorf("after %s: now %q, held %q, barred %q, want %q, %q, %q", tt.name, s.Version(), spell(s.Held), spell(s.Barred), tt.now, tt.held, tt.barred)
		}
		for _, tag := range tags(tt.held) {
			if !s.HasHeld(tag) {
				t.Errorf("after %s: HasHeld(%s) = false, want true", tt.name, tag)
			}
		}
	}
	var none *registry.EnvironmentState
	if !none.Version().IsZero() || none.HasHeld(registry.MustTag("v1.0.0")) {
		t.Error("no state has a version or held one")
	}
}

func TestBefore(t *testing.T) {
	usable := func(registry.Tag) bool { return true }
	const person, server = false, true
	tests := []struct {
		name    string
		changes []registry.EnvironmentChange
		want    string
	}{
		{"nothing", nil, ""},
		{"the first", []registry.EnvironmentChange{promote("v1.0.0", server)}, ""},
		{"the second", []registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server)}, "v1.0.0"},
		{"an older one that a person put there", []registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), promote("v1.0.0", person)}, "v1.1.0"},
		{
			"a rollback goes on to what was before, not to what it took out",
			[]registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), promote("v1.2.0", server), rollback("v1.1.0", person)},
			"v1.0.0",
		},
		{
			"all that was before was rolled back",
			[]registry.EnvironmentChange{promote("v1.0.0", server), promote("v1.1.0", server), rollback("v1.0.0", person)},
			"",
		},
	}
	for _, tt := range tests {
		var s registry.EnvironmentState
		for _, c := range tt.changes {
			c.Previous = s.Version()
			s.Apply(c)
		}
		if got := s.Before(usable); got.String() != tt.want {
			t.Errorf("Before after %s = %q, want %q", tt.name, got, tt.want)
		}
	}
	var none *registry.EnvironmentState
	if got := none.Before(usable); !got.IsZero() {
		t.Errorf("Before of no state = %q, want none", got)
	}
}

func TestApplyLeavesCopies(t *testing.T) {
	base := registry.EnvironmentState{Held: tags("v1.0.0 v1.1.0 v1.2.0"), Barred: tags("v1.1.0 v1.2.0")}
	base.Apply(promote("v1.3.0", true))
	want := cmp.Diff(nil, []string{spell(base.Held), spell(base.Barred), base.Version().String()})
	for _, c := range []registry.EnvironmentChange{promote("v1.1.0", false), promote("v1.4.0", true), promote("v1.5.0", true), rollback("v1.0.0", true)} {
		state := base
		state.Apply(c)
		if got := cmp.Diff(nil, []string{spell(base.Held), spell(base.Barred), base.Version().String()}); got != want {
			t.Fatalf("after %s of %s to a copy the state is %s, want %s", c.Kind, c.Version, got, want)
		}
	}
}

// The rule that keeps promotions from flapping.
func TestMayPromoteAutomatically(t *testing.T) {
	auto := registry.Environment{Promote: registry.PromoteAuto}
	pre := registry.Environment{Promote: registry.PromoteAuto, Prereleases: true}
	tests := []struct {
		name         string
		env          registry.Environment
		held, barred string
		tag          string
		want         bool
	}{
		{"the first", auto, "", "", "v1.0.0", true},
		{"a higher one", auto, "v1.0.0", "", "v1.0.1", true},
		{"ten comes after nine", auto, "v1.9.0", "", "v1.10.0", true},
		{"the same again", auto, "v1.0.0", "", "v1.0.0", false},
		{"an old one that passes late", auto, "v1.0.0 v1.2.0", "", "v1.1.0", false},
		{"lower than one that left by a promotion", auto, "v2.0.0 v1.0.0", "", "v1.5.0", false},
		{"above all but one", auto, "v1.0.0 v3.0.0 v2.0.0", "", "v2.1.0", false},
		{"what was rolled back", auto, "v1.0.0 v1.1.0", "v1.1.0", "v1.1.0", false},
		{"between what runs and what was rolled back", auto, "v1.0.0 v1.2.0", "v1.2.0", "v1.1.0", false},
		{"after what was rolled back", auto, "v1.0.0 v1.1.0", "v1.1.0", "v1.1.1", true},
		{"barred without having been there", auto, "v1.0.0", "v1.1.0", "v1.1.0", false},
		{"a pre-release", auto, "", "", "v1.0.0-rc.1", false},
		{"a pre-release where they are taken", pre, "", "", "v1.0.0-rc.1", true},
		{"the next pre-release", pre, "v1.0.0-rc.1", "", "v1.0.0-rc.2", true},
		{"a pre-release of what is there", pre, "v1.0.0", "", "v1.0.0-rc.9", false},
		{"the release after its pre-release", auto, "v1.0.0-rc.1", "", "v1.0.0", true},
		{"a release where pre-releases are taken", pre, "v1.0.0-rc.1", "", "v1.0.0", true},
		{"where a person promotes", registry.Environment{Promote: registry.PromoteManual}, "", "", "v1.0.0", false},
		{"where nothing is said", registry.Environment{}, "", "", "v1.0.0", false},
	}
	for _, tt := range tests {
		state := &registry.EnvironmentState{Held: tags(tt.held), Barred: tags(tt.barred)}
		if got := registry.MayPromoteAutomatically(&tt.env, state, registry.MustTag(tt.tag)); got != tt.want {
			t.Errorf("MayPromoteAutomatically(%s) with %q held and %q barred (%s) = %t, want %t", tt.tag, tt.held, tt.barred, tt.name, got, tt.want)
		}
	}
	if !registry.MayPromoteAutomatically(&auto, nil, registry.MustTag("v1.0.0")) {
		t.Error("MayPromoteAutomatically to an environment that never held anything = false, want true")
	}
}

// Whatever happened before, the server promotes only upward, and nothing twice.
func FuzzAutomaticPromotionsRise(f *testing.F) {
	f.Add([]byte{0x10, 0x20, 0x80, 0x20, 0x90, 0x30})
	f.Add([]byte{0x00, 0x41, 0x82, 0xc3, 0x04})
	f.Fuzz(func(t *testing.T, steps []byte) {
		env := registry.Environment{Promote: registry.PromoteAuto, Prereleases: true}
		all := tags("v1.0.0-rc.1 v1.0.0 v1.0.1 v1.1.0-rc.1 v1.1.0 v1.9.0 v1.10.0 v2.0.0")
		var s registry.EnvironmentState
		var highest registry.Tag
		byServer := map[registry.Tag]bool{}
		for _, step := range steps {
			tag := all[step&7]
			switch {
			case step&0x80 == 0 && registry.MayPromoteAutomatically(&env, &s, tag):
				if tag.Compare(highest) <= 0 || byServer[tag] {
					t.Fatalf("after %x the server would promote %s, and %s was there", steps, tag, highest)
				}
				byServer[tag] = true
				s.Apply(promote(tag.String(), true))
			case step&0xc0 == 0x80:
				s.Apply(promote(tag.String(), false))
			case step&0xc0 == 0xc0 && s.HasHeld(tag):
				s.Apply(rollback(tag.String(), step&0x20 == 0))
			default:
				continue
			}
			if tag.Compare(highest) > 0 {
				highest = tag
			}
		}
	})
}

func TestPlaces(t *testing.T) {
	env := registry.MustEnvironmentName
	policy := &registry.Policy{Environments: []registry.Environment{{Name: env("staging")}, {Name: env("production")}}}
	states := []registry.EnvironmentState{{Name: env("canary")}, {Name: env("production"), Held: []registry.Tag{registry.MustTag("v1.0.0")}}}
	tests := []struct {
		name   string
		policy *registry.Policy
		states []registry.EnvironmentState
		want   []registry.Place
	}{
		{"nothing", nil, nil, nil},
		{"a policy alone", policy, nil, []registry.Place{
			{Policy: &policy.Environments[0], State: registry.EnvironmentState{Name: env("staging")}},
			{Policy: &policy.Environments[1], State: registry.EnvironmentState{Name: env("production")}},
		}},
		{"states alone", nil, states, []registry.Place{{State: states[0]}, {State: states[1]}}},
		{"both", policy, states, []registry.Place{
			{Policy: &policy.Environments[0], State: registry.EnvironmentState{Name: env("staging")}},
			{Policy: &policy.Environments[1], State: states[1]},
			{State: states[0]},
		}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, registry.Places(tt.policy, tt.states), cmpopts.EquateComparable(registry.Tag{}, registry.EnvironmentName{})); diff != "" {
			t.Errorf("Places of %s (-want +got):\n%s", tt.name, diff)
		}
	}
}
