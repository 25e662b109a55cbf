package lifecycle_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// alone is a policy with one environment.
const alone = `
environments:
  staging:
    promote: auto
    gates: ["metrics.f1 >= 0.80"]
`

// state brings a version into a state.
func (s *site) state(m registry.Model, tag string, state registry.VersionState) {
	s.tb.Helper()
	if _, err := s.SetState(s.tb.Context(), by("grace"), m, registry.MustTag(tag), lifecycle.NewState{State: state, Reason: "it hears voices"}); err != nil {
		s.tb.Fatalf("SetState(%s, %s) = %v", tag, state, err)
	}
}

func (s *site) freeze(m registry.Model, env registry.EnvironmentName, frozen bool) {
	s.tb.Helper()
	if _, err := s.Freeze(s.tb.Context(), by("grace"), m, env, frozen, "the holidays"); err != nil {
		s.tb.Fatalf("Freeze(%s, %t) = %v", env, frozen, err)
	}
}

func TestStates(t *testing.T) {
	s, m := prepared(t, alone)
	v1, v2 := s.release(m, "v1.0.0"), s.release(m, "v2.0.0")
	s.evaluate(m, v1, 0.9)
	s.state(m, "v2.0.0", registry.Quarantined)
	s.evaluate(m, v2, 0.9)
	steps := []struct {
		name  string
		do    func()
		state registry.VersionState // of v2.0.0
		live  string                // in staging
		told  []string
	}{
		{"a quarantined version is not promoted", func() {}, registry.Quarantined, "v1.0.0", []string{}},
		{"restored, its gates open", func() { s.state(m, "v2.0.0", registry.Published) }, registry.Published, "v2.0.0", []string{
			"version.restored v2.0.0 by grace", "gate.opened v2.0.0 staging by herdbook", "environment.promoted v2.0.0 staging by herdbook",
		}},
		{"deprecated, it stays", func() { s.state(m, "v2.0.0", registry.Deprecated) }, registry.Deprecated, "v2.0.0", []string{"version.deprecated v2.0.0 by grace"}},
		{"quarantined, it stays where it is", func() { s.state(m, "v2.0.0", registry.Quarantined) }, registry.Quarantined, "v2.0.0", []string{
			"version.quarantined v2.0.0 by grace", "gate.closed v2.0.0 staging by herdbook",
		}},
		{"until somebody rolls back", func() {
			if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.Tag{}, ""); err != nil {
				t.Fatal(err)
			}
		}, registry.Quarantined, "v1.0.0", []string{"environment.rolledback v1.0.0 staging by ada"}},
		{"restored, it is barred", func() { s.state(m, "v2.0.0", registry.Published) }, registry.Published, "v1.0.0", []string{
			"version.restored v2.0.0 by grace", "gate.opened v2.0.0 staging by herdbook",
		}},
	}
	for _, step := range steps {
		last := s.lastEvent()
		step.do()
		if got := s.version(m, "v2.0.0").State; got != step.state || s.in(m, staging) != step.live {
			t.Errorf("%s: v2.0.0 is %s and %s is in staging, want %s and %s", step.name, got, s.in(m, staging), step.state, step.live)
		}
		if diff := cmp.Diff(step.told, told(s.events(last))); diff != "" {
			t.Errorf("%s: events (-want +got):\n%s", step.name, diff)
		}
	}
	history, err := s.data.Index.StateHistory(t.Context(), m.ID, v2.Version.Tag)
	if err != nil || len(history) != 5 || history[4].Previous != registry.Quarantined || history[4].Reason != "it hears voices" || history[4].By != "grace" {
		t.Errorf("StateHistory(v2.0.0) = %+v, %v, want 5 changes, the last one out of quarantine by grace", history, err)
	}
	if changed := s.version(m, "v2.0.0").Changed; changed == nil || *changed != history[4] {
		t.Errorf("the version says that %+v was its last change, want %+v", changed, history[4])
	}
}

func TestSetStateRefusals(t *testing.T) {
	s, m := prepared(t, alone)
	s.evaluate(m, s.release(m, "v1.0.0"), 0.9) // is in staging now
	s.release(m, "v1.1.0")
	s.state(m, "v1.1.0", registry.Revoked)
	key := by("grace")
	key.Key = "k1"
	if _, err := s.SetState(t.Context(), key, m, registry.MustTag("v1.0.0"), lifecycle.NewState{State: registry.Deprecated, Reason: "old"}); err != nil {
		t.Fatal(err)
	}
	writer := lifecycle.Request{Identity: access.Identity{Name: "bob", Role: access.Writer}}
	tests := []struct {
		name string
		by   lifecycle.Request
		tag  string
		to   lifecycle.NewState
		want error
		says string
	}{
		{"no right", writer, "v1.0.0", lifecycle.NewState{State: registry.Quarantined, Reason: "x"}, registry.ErrForbidden, "not allowed"},
		{"no reason", by("grace"), "v1.0.0", lifecycle.NewState{State: registry.Quarantined}, registry.ErrInvalid, "say why"},
		{"a reason that steers a terminal", by("grace"), "v1.0.0", lifecycle.NewState{State: registry.Quarantined, Reason: "\x1b[2J"}, registry.ErrInvalid, "control characters"},
		{"no such version", by("grace"), "v9.0.0", lifecycle.NewState{State: registry.Quarantined, Reason: "x"}, registry.ErrNotFound, "v9.0.0"},
		{"what is revoked", by("grace"), "v1.1.0", lifecycle.NewState{State: registry.Published, Reason: "x"}, registry.ErrConflict, "v1.1.0 is revoked, and that is for ever"},
		{"what is live", by("grace"), "v1.0.0", lifecycle.NewState{State: registry.Revoked, Reason: "x"}, registry.ErrConflict, "v1.0.0 is in staging: roll back first, or force it"},
		{"the key of another change", key, "v1.0.0", lifecycle.NewState{State: registry.Quarantined, Reason: "x"}, registry.ErrConflict, "idempotency key"},
	}
	for _, tt := range tests {
		groups := s.groups()
		_, err := s.SetState(t.Context(), tt.by, m, registry.MustTag(tt.tag), tt.to)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || s.groups() != groups {
			t.Errorf("SetState, %s = %v with %d groups written, want %v that says %q, and none", tt.name, err, s.groups()-groups, tt.want, tt.says)
		}
	}
	again, err := s.SetState(t.Context(), key, m, registry.MustTag("v1.0.0"), lifecycle.NewState{State: registry.Deprecated, Reason: "old"})
	if err != nil || again.State != registry.Deprecated {
		t.Errorf("the same change with the same key = %+v, %v, want the first one", again, err)
	}
	forced := lifecycle.NewState{State: registry.Revoked, Reason: "x", ForceLive: true}
	if _, err := s.SetState(t.Context(), by("grace"), m, registry.MustTag("v1.0.0"), forced); err != nil || s.in(m, staging) != "v1.0.0" {
		t.Errorf("SetState by force = %v, %s is in staging, want v1.0.0 still", err, s.in(m, staging))
	}
}

// What only revoked versions have is withdrawn, and what another version has too is not.
func TestWithdrawn(t *testing.T) {
	s := open(t)
	m := s.model(fraud)
	shared, lone := map[string]string{"README.md": "# m\n", "shared.txt": "in both"}, map[string]string{"README.md": "# m\n", "shared.txt": "in both", "lone.txt": "in one"}
	s.publish(m, "v1.0.0", shared)
	second := s.publish(m, "v2.0.0", lone)
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	second = s.version(m, "v2.0.0")
	withdrawn := func(d digest.Digest) bool {
		change, err := s.data.Index.Withdrawn(t.Context(), m.ID, d)
		if err != nil {
			t.Fatal(err)
		}
		return change != nil
	}
	file := func(v registry.VersionRecord, path string) digest.Digest {
		i := slices.IndexFunc(v.Version.Files, func(f registry.File) bool { return f.Path == path })
		return v.Version.Files[i].Digest
	}
	want := func(when string, artifact, image, loneFile bool) {
		t.Helper()
		got := []bool{
			withdrawn(second.Version.Artifact.Digest), withdrawn(second.Image.Digest), withdrawn(file(second, "lone.txt")),
			withdrawn(file(second, "shared.txt")), withdrawn(s.version(m, "v1.0.0").Version.Artifact.Digest), withdrawn(s.version(m, "v1.0.0").Image.Digest),
		}
		if diff := cmp.Diff([]bool{artifact, image, loneFile, false, false, false}, got); diff != "" {
			t.Errorf("%s: artifact, image and lone file of v2.0.0, what v1.0.0 has too, artifact and image of v1.0.0 are withdrawn (-want +got):\n%s", when, diff)
		}
	}
	want("at first", false, false, false)
	s.state(m, "v2.0.0", registry.Revoked)
	want("revoked", true, true, true)
	s.publish(m, "v3.0.0", map[string]string{"README.md": "# 3\n", "lone.txt": "in one"})
	want("when another version has the file", true, true, false)

	// An image that was not made when its version was revoked is not made any more.
	s.state(m, "v3.0.0", registry.Revoked)
	if err := s.BuildImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	if image := s.version(m, "v3.0.0").Image; image.State != registry.ImageFailed || image.Error != "the version is revoked" {
		t.Errorf("image of a version that was revoked before = %+v, want none", image)
	}
	want("when that one is revoked too", true, true, true)
}

func TestFreeze(t *testing.T) {
	s, m := prepared(t, alone)
	s.evaluate(m, s.release(m, "v1.0.0"), 0.9)
	s.freeze(m, staging, true)
	s.evaluate(m, s.release(m, "v1.1.0"), 0.9)
	if got := s.in(m, staging); got != "v1.0.0" {
		t.Errorf("%s is in staging, which is frozen, want v1.0.0", got)
	}
	refused := []struct {
		name string
		do   func() error
		says string
	}{
		{"a promotion", func() error {
			_, err := s.Promote(t.Context(), by("ada"), m, staging, lifecycle.Promotion{Version: registry.MustTag("v1.1.0")})
			return err
		}, "staging is frozen by grace since "},
		{"a second freeze", func() error { _, err := s.Freeze(t.Context(), by("ada"), m, staging, true, ""); return err }, "staging is frozen already, by grace since "},
		{"to unfreeze another", func() error { _, err := s.Freeze(t.Context(), by("ada"), m, production, false, ""); return err }, ""},
	}
	for _, tt := range refused {
		if err := tt.do(); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s = %v, want an error that says %q", tt.name, err, tt.says)
		}
	}
	last := s.lastEvent()
	s.freeze(m, staging, false)
	if diff := cmp.Diff([]string{"environment.unfrozen staging by grace", "environment.promoted v1.1.0 staging by herdbook"}, told(s.events(last))); diff != "" {
		t.Errorf("events of what waited (-want +got):\n%s", diff)
	}
	s.freeze(m, staging, true)
	if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.Tag{}, "now"); err != nil || s.in(m, staging) != "v1.0.0" {
		t.Errorf("RollBack of what is frozen = %v, %s is there, want v1.0.0", err, s.in(m, staging))
	}
}

// Of two who promote what they take to replace the same version, one is told who was faster.
func TestPromotionReplaces(t *testing.T) {
	s, m := prepared(t, alone)
	for _, tag := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
		s.release(m, tag)
	}
	s.policy(m, strings.ReplaceAll(alone, "metrics.f1 >= 0.80", "true"))
	held := s.in(m, staging)
	tests := []struct {
		version, replaces string
		says              string
	}{
		{"v1.0.0", "", held + " is in staging, promoted by herdbook at "},
		{"v1.0.0", "v1.1.0", "and v1.1.0 was to be replaced"},
		{"v1.0.0", held, ""},
		{"v1.1.0", held, "v1.0.0 is in staging, promoted by ada at "},
		{"v1.1.0", "v1.0.0", ""},
	}
	for _, tt := range tests {
		var replaced registry.Tag
		if tt.replaces != "" {
			replaced = registry.MustTag(tt.replaces)
		}
		_, err := s.Promote(t.Context(), by("ada"), m, staging, lifecycle.Promotion{Version: registry.MustTag(tt.version), Replaces: &replaced})
		if tt.says == "" && err != nil || tt.says != "" && (!errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("Promote(%s, replaces %q) = %v, want an error that says %q, or none", tt.version, tt.replaces, err, tt.says)
		}
	}
}

// To roll back goes past what nobody should run.
func TestRollBackPassesWhatIsNotUsable(t *testing.T) {
	s, m := prepared(t, alone)
	for _, tag := range []string{"v1.0.0", "v1.1.0", "v1.2.0"} {
		s.evaluate(m, s.release(m, tag), 0.9)
	}
	s.state(m, "v1.1.0", registry.Quarantined)
	if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.MustTag("v1.1.0"), ""); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("RollBack to a quarantined version = %v, want ErrConflict", err)
	}
	if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.Tag{}, ""); err != nil || s.in(m, staging) != "v1.0.0" {
		t.Errorf("RollBack = %v, %s is in staging, want v1.0.0", err, s.in(m, staging))
	}
	for range 10 {
		s.reconcile(m)
	}
	dir := s.dir
	s.close()
	s = openDir(t, dir)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.reconcile(m); s.in(m, staging) != "v1.0.0" {
		t.Errorf("%s is in staging after ten reconciliations and a restart, want v1.0.0", s.in(m, staging))
	}
}

// States and freezes stand in the model's own repository, and a mirror clone brings them along.
func TestStatesAreMirrored(t *testing.T) {
	s, m := prepared(t, alone)
	s.evaluate(m, s.release(m, "v1.0.0"), 0.9)
	s.release(m, "v1.1.0")
	s.state(m, "v1.0.0", registry.Deprecated)
	s.state(m, "v1.1.0", registry.Quarantined)
	s.state(m, "v1.1.0", registry.Revoked)
	s.freeze(m, staging, true)
	s.mirror()
	log := s.git(m.Name, "log", "--format=%an: %s", registry.VersionsRef)
	for _, line := range []string{"grace: deprecated v1.0.0", "grace: quarantined v1.1.0", "grace: revoked v1.1.0"} {
		if !strings.Contains(log, line) {
			t.Errorf("git log of %s = %q, want a line %q", registry.VersionsRef, log, line)
		}
	}
	if log := s.git(m.Name, "log", "-1", "--format=%an: %s", registry.EnvironmentsPrefix+"staging"); !strings.Contains(log, "grace: freeze") {
		t.Errorf("last change of staging = %q, want the freeze", log)
	}
	dir := t.TempDir()
	s.clone(m, dir, m.Name)
	other := openDir(t, dir)
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"v1.0.0", "v1.1.0"} {
		if want, got := s.version(m, tag), other.version(m, tag); got.State != want.State || !cmp.Equal(got.Changed, want.Changed, named) {
			t.Errorf("%s in a server that has the clone = %s %+v, want %s %+v", tag, got.State, got.Changed, want.State, want.Changed)
		}
	}
	if change, err := other.data.Index.Withdrawn(t.Context(), m.ID, s.version(m, "v1.1.0").Version.Artifact.Digest); err != nil || change == nil {
		t.Errorf("Withdrawn(artifact of v1.1.0) in a server that has the clone = %v, %v, want why", change, err)
	}
	state, err := other.data.Index.Environment(t.Context(), m.ID, staging)
	if err != nil || state.Freeze == nil || state.Freeze.Reason != "the holidays" {
		t.Errorf("staging in a server that has the clone = %+v, %v, want it frozen", state.Freeze, err)
	}
}

// Another tag at the commit of what was revoked or quarantined does not make another thing of it.
func TestTwins(t *testing.T) {
	s, m := prepared(t, alone)
	s.evaluate(m, s.release(m, "v1.0.0"), 0.9)
	bad := s.release(m, "v1.1.0")
	s.evaluate(m, bad, 0.9)
	if _, err := s.RollBack(t.Context(), by("ada"), m, staging, registry.Tag{}, ""); err != nil {
		t.Fatal(err)
	}
	for i, state := range []registry.VersionState{registry.Quarantined, registry.Revoked} {
		s.state(m, "v1.1.0", state)
		tag := []string{"v1.1.1", "v1.1.2"}[i]
		s.tag(m.Name, tag, bad.Version.Commit)
		s.reconcile(m)
		if got := s.in(m, staging); got != "v1.0.0" {
			t.Errorf("with %s at the commit of what is %s, %s is in staging, want v1.0.0", tag, state, got)
		}
		verdicts, err := s.Verdicts(t.Context(), m, s.version(m, tag))
		if err != nil || len(verdicts) != 1 || verdicts[0].Open || !strings.Contains(verdicts[0].Reason(), "stands at the same commit and is "+string(state)) {
			t.Errorf("verdict on %s = %+v, %v, want it closed because v1.1.0 is %s", tag, verdicts, err, state)
		}
	}
	for _, f := range bad.Version.Files {
		if change, err := s.data.Index.Withdrawn(t.Context(), m.ID, f.Digest); err != nil || change == nil {
			t.Errorf("Withdrawn(%s) with another tag at the commit = %v, %v, want why", f.Path, change, err)
		}
	}
}

// What was live under one name does not come back while another name of the same commit may not.
func TestRollBackToATwin(t *testing.T) {
	s, m := prepared(t, alone)
	first := s.release(m, "v1.0.0")
	s.evaluate(m, first, 0.9)
	s.tag(m.Name, "v1.0.1", first.Version.Commit)
	s.reconcile(m)
	s.evaluate(m, s.release(m, "v2.0.0"), 0.9)
	if got, want := s.history(m, staging), 3; len(got) != want {
		t.Fatalf("history of staging = %q, want three promotions", got)
	}
	back := func(tag registry.Tag) error {
		_, err := s.RollBack(t.Context(), by("ada"), m, staging, tag, "")
		return err
	}
	for _, state := range []registry.VersionState{registry.Quarantined, registry.Revoked} {
		s.state(m, "v1.0.1", state)
		err := back(first.Version.Tag)
		if want := "v1.0.0 stands at the same commit as v1.0.1, which is " + string(state); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("RollBack to v1.0.0 = %v, want a conflict: %s", err, want)
		}
		if err := back(registry.Tag{}); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "nothing was in staging before") {
			t.Errorf("RollBack while v1.0.1 is %s = %v, want that there is nothing to go back to", state, err)
		}
		if got := s.in(m, staging); got != "v2.0.0" {
			t.Errorf("%s is in staging after rollbacks that were refused, want v2.0.0", got)
		}
		if state == registry.Revoked {
			return
		}
		s.state(m, "v1.0.1", registry.Published)
		if err := back(first.Version.Tag); err != nil {
			t.Errorf("RollBack to v1.0.0 when v1.0.1 is restored = %v, want none", err)
		}
		s.promote(m, staging, "v2.0.0")
	}
}
