package lifecycle_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage"
)

// findings are what a check of the storage finds.
func (s *site) findings() []string {
	s.tb.Helper()
	found := []string{}
	report := storage.Report{Found: func(f storage.Finding) { found = append(found, fmt.Sprint(f.What, " ", f.Name, ": ", f.Problem)) }}
	if _, err := s.data.Fsck(s.tb.Context(), storage.FsckOptions{}, report); err != nil {
		s.tb.Fatalf("Fsck = %v", err)
	}
	return found
}

// backup makes a backup and calls then at each moment of which it tells, with the step that it is at. It returns those steps and
// what was found.
func (s *site) backup(to string, then func(step string)) (steps, found []string) {
	s.tb.Helper()
	report := storage.Report{
		Found: func(f storage.Finding) { found = append(found, fmt.Sprint(f.What, " ", f.Name, ": ", f.Problem)) },
		Progress: func(p storage.Progress) {
			steps = append(steps, p.Step)
			then(p.Step)
		},
	}
	if _, err := s.data.Backup(s.tb.Context(), to, report); err != nil {
		s.tb.Fatalf("Backup = %v", err)
	}
	return steps, found
}

// restored opens a data directory that is made from a backup.
func restored(t *testing.T, from string) *site {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	report := storage.Report{Found: func(f storage.Finding) { t.Errorf("Restore finds %+v, want nothing", f) }}
	if _, err := storage.Restore(t.Context(), from, dir, false, report); err != nil {
		t.Fatalf("Restore = %v", err)
	}
	return openDir(t, dir)
}

// A model that is deleted while a backup runs is in what is restored from it as it was, or not at all.
func TestDeletionWhileABackupRuns(t *testing.T) {
	s := open(t)
	other := s.model(registry.MustModelName("acme/other"))
	s.publish(other, "v1.0.0", map[string]string{"README.md": "# Other\n"})
	remove := func(m registry.Model) {
		if err := s.DeleteModel(t.Context(), by("root"), m); err != nil {
			t.Errorf("DeleteModel = %v", err)
		}
	}
	tests := []struct {
		name  string
		do    func(m registry.Model)
		again bool
	}{
		{"deleted", remove, false},
		{"deleted and made again", func(m registry.Model) {
			remove(m)
			s.publish(s.model(m.Name), "v2.0.0", map[string]string{"README.md": "# Again\n"})
		}, true},
	}
	steps, _ := s.backup(filepath.Join(t.TempDir(), "backup"), func(string) {})
	if want := []string{"journal", "journal", "repositories", "repositories", "blobs", "blobs", "sync", "sync"}; !slices.Equal(steps, want) {
		t.Fatalf("a backup tells of %q, want the begin and the end of each step: %q", steps, want)
	}
	for i, test := range tests {
		for _, at := range []int{0, 1, 3, 4} {
			step := steps[at]
			name := fmt.Sprintf("a model that was %s at moment %d of the backup, %s", test.name, at, step)
			m := s.model(registry.MustModelName(fmt.Sprintf("acme/m%d-%d", i, at)))
			s.upload(m, "weights")
			before := s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n", "weights.bin": pointer("weights")})
			to, moment := filepath.Join(t.TempDir(), "backup"), 0
			_, found := s.backup(to, func(string) {
				if moment++; moment == at+1 {
					test.do(m)
				}
			})
			if len(found) > 0 {
				t.Errorf("%s: Backup finds %q, want nothing", name, found)
			}

			r := restored(t, to)
			found = r.findings()
			if err := r.look(); err != nil {
				t.Errorf("%s: start = %v", name, err)
			}
			if found = append(found, r.findings()...); len(found) > 0 {
				t.Errorf("%s: Fsck of what was restored, before and after a start, finds %q, want nothing", name, found)
			}
			if log := append(r.log.lines("level=WARN"), r.log.lines("level=ERROR")...); len(log) > 0 {
				t.Errorf("%s: the restored server complains of %q, want nothing", name, log)
			}
			want := []registry.ModelName{other.Name}
			wantEvents := 1
			switch {
			case at == 0 && test.again: // before the journal was copied
				want = []registry.ModelName{m.Name, other.Name}
			case step == "blobs": // behind the repositories
				want, wantEvents = []registry.ModelName{m.Name, other.Name}, 0
				if diff := cmp.Diff(before.Version, r.version(m, "v1.0.0").Version, named); diff != "" {
					t.Errorf("%s: its version (-want +got):\n%s", name, diff)
				}
			}
			repositories, err := r.data.Repositories.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			known, err := r.data.Index.AllModels(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			models := []registry.ModelName{}
			for _, m := range known {
				models = append(models, m.Name)
			}
			slices.SortFunc(models, func(a, b registry.ModelName) int { return strings.Compare(a.String(), b.String()) })
			if diff := cmp.Diff(want, repositories, named); diff != "" {
				t.Errorf("%s: repositories (-want +got):\n%s", name, diff)
			}
			if diff := cmp.Diff(want, models, named); diff != "" {
				t.Errorf("%s: models (-want +got):\n%s", name, diff)
			}
			if _, err := os.Stat(filepath.Join(r.dir, "repos", ".aside")); err == nil {
				t.Errorf("%s: a repository was moved aside, want none to be there that should not", name)
			}
			events := 0
			for _, e := range r.events(0) {
				if e.ModelID == m.ID && e.Type == registry.EventModelDeleted {
					events++
				}
			}
			if events != wantEvents {
				t.Errorf("%s: its deletion was announced %d times, want %d", name, events, wantEvents)
			}
			r.close()
			if again, err := s.data.Index.ModelByName(t.Context(), m.Name); err == nil {
				remove(again)
			}
		}
	}
}

// A model that is made while a backup runs may be in it; one that is also deleted then is not.
func TestModelMadeWhileABackupRuns(t *testing.T) {
	s := open(t)
	other := s.model(registry.MustModelName("acme/other"))
	s.publish(other, "v1.0.0", map[string]string{"README.md": "# Other\n"})
	never := -1
	tests := []struct{ made, deleted int }{{0, 3}, {1, 3}, {2, never}, {3, never}, {3, 4}}
	for i, test := range tests {
		name := fmt.Sprintf("a model that was made at moment %d of the backup and deleted at %d", test.made, test.deleted)
		var m registry.Model
		moment := -1
		to := filepath.Join(t.TempDir(), "backup")
		_, found := s.backup(to, func(string) {
			switch moment++; moment {
			case test.made:
				m = s.model(registry.MustModelName(fmt.Sprintf("acme/m%d", i)))
				s.publish(m, "v1.0.0", map[string]string{"README.md": "# Model\n"})
			case test.deleted:
				if err := s.DeleteModel(t.Context(), by("root"), m); err != nil {
					t.Errorf("DeleteModel = %v", err)
				}
			}
		})
		r := restored(t, to)
		if err := r.look(); err != nil {
			t.Errorf("%s: start = %v", name, err)
		}
		if found = append(found, r.findings()...); len(found) > 0 {
			t.Errorf("%s: Backup, and Fsck of what was restored, find %q, want nothing", name, found)
		}
		if log := append(r.log.lines("level=WARN"), r.log.lines("level=ERROR")...); len(log) > 0 {
			t.Errorf("%s: the restored server complains of %q, want nothing", name, log)
		}
		told := 0
		for _, e := range r.events(0) {
			if e.ModelID == m.ID && e.Type == registry.EventModelDeleted {
				told++
			}
		}
		if want := test.made == 0 && test.deleted != never; (told == 1) != want || told > 1 {
			t.Errorf("%s: its deletion was announced %d times, want it once if its making was: %v", name, told, want)
		}
		_, err := os.Stat(filepath.Join(r.dir, "repos", m.Name.String()+".git"))
		_, indexErr := r.data.Index.ModelByName(t.Context(), m.Name)
		if (err == nil) != (indexErr == nil) || err == nil && test.deleted != never {
			t.Errorf("%s: its repository: %v, the model: %v", name, err, indexErr)
		}
		r.close()
	}
}
