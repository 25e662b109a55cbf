package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

func TestBuildImages(t *testing.T) {
	broken := &breakable{lost: map[string]bool{}}
	s := open(t, func(f *faults) { broken.Blobs, f.Blobs = f.Blobs, broken })
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# 1\n"})
	bad := s.publish(m, "v1.1.0", map[string]string{"README.md": "# 2\n"})
	s.publish(m, "v1.2.0", map[string]string{"README.md": "# 3\n"})
	broken.lost[bad.Version.Files[0].Digest.String()] = true
	last := s.lastEvent()
	if err := s.BuildImages(t.Context()); err != nil {
		t.Errorf("BuildImages = %v, want nil: what failed is recorded", err)
	}
	if diff := cmp.Diff([]string{"version.image_ready v1.0.0 by herdbook", "version.image_ready v1.2.0 by herdbook"}, told(s.events(last))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	want := registry.ImageStatus{State: registry.ImageFailed, Error: "the image could not be made; the server's log says why"}
	if diff := cmp.Diff(want, s.version(m, "v1.1.0").Image); diff != "" {
		t.Errorf("image of the version whose file is lost (-want +got):\n%s", diff)
	}
	if got := s.log.lines("image of a version cannot be made"); len(got) != 1 || !strings.Contains(got[0], "version=v1.1.0") || !strings.Contains(got[0], errBroken.Error()) {
		t.Errorf("logged %q, want one line that names v1.1.0 and the reason", got)
	}
	for _, tag := range []string{"v1.0.0", "v1.2.0"} {
		image := s.version(m, tag).Image
		if image.State != registry.ImageReady {
			t.Errorf("image of %s = %+v, want ready", tag, image)
			continue
		}
		if _, err := s.read(image.Digest); err != nil {
			t.Errorf("index of the image of %s: %v, want it in the store", tag, err)
		}
	}
	groups := s.groups()
	if err := s.BuildImages(t.Context()); err != nil {
		t.Errorf("BuildImages again = %v", err)
	}
	if got := s.groups(); got != groups {
		t.Errorf("BuildImages again added %d groups to the journal, want 0", got-groups)
	}
}

// full is a store on a full disk.
type full struct {
	lifecycle.Blobs
	now bool
}

func (f *full) Put(ctx context.Context, r io.Reader) (registry.BlobInfo, error) {
	if f.now {
		return registry.BlobInfo{}, fmt.Errorf("write blob: %w", syscall.ENOSPC)
	}
	return f.Blobs.Put(ctx, r)
}

// What is wrong with the machine is wrong with no version: the image is made when there is space again.
func TestImageOnAFullDisk(t *testing.T) {
	disk := &full{}
	s := open(t, func(f *faults) { disk.Blobs, f.Blobs = f.Blobs, disk })
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# 1\n"})
	disk.now = true
	if err := s.BuildImages(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("BuildImages on a full disk = %v, want ENOSPC", err)
	}
	if got := s.version(m, "v1.0.0").Image.State; got != registry.ImageBuilding {
		t.Errorf("image on a full disk = %s, want it still %s", got, registry.ImageBuilding)
	}
	disk.now = false
	if err := s.BuildImages(t.Context()); err != nil {
		t.Errorf("BuildImages with space again = %v", err)
	}
	if got := s.version(m, "v1.0.0").Image.State; got != registry.ImageReady {
		t.Errorf("image with space again = %s, want %s", got, registry.ImageReady)
	}
}

func TestImageOfADeletedModel(t *testing.T) {
	broken := &breakable{lost: map[string]bool{}}
	s := open(t, func(f *faults) { broken.Blobs, f.Blobs = f.Blobs, broken })
	m := s.model(fraud)
	s.publish(m, "v1.0.0", map[string]string{"README.md": "# 1\n"})
	broken.get = func() {
		broken.get = nil
		if err := s.DeleteModel(t.Context(), by("ada"), m); err != nil {
			t.Error(err)
		}
	}
	if err := s.BuildImages(t.Context()); err != nil {
		t.Errorf("BuildImages = %v, want nil", err)
	}
	if broken.get != nil {
		t.Fatal("no blob was read: the test tests nothing")
	}
	events := told(s.events(0))
	if i := slices.Index(events, "model.deleted by ada"); i != len(events)-1 {
		t.Errorf("events %q, want nothing behind model.deleted", events)
	}
}
