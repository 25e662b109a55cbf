package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/herdbook/herdbook/registry"
)

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettingsOrder(t *testing.T) {
	tests := []struct {
		name, file, environment string
		flags                   map[string]any
		want                    string // of listen
	}{
		{"default", "", "", nil, "127.0.0.1:8080"},
		{"file", "listen: 127.0.0.1:1", "", nil, "127.0.0.1:1"},
		{"variable before file", "listen: 127.0.0.1:1", "127.0.0.1:2", nil, "127.0.0.1:2"},
		{"flag before variable", "listen: 127.0.0.1:1", "127.0.0.1:2", map[string]any{"listen": "127.0.0.1:3"}, "127.0.0.1:3"},
		{"flag before file", "listen: 127.0.0.1:1", "", map[string]any{"listen": "127.0.0.1:3"}, "127.0.0.1:3"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := ""
			if test.file != "" {
				file = write(t, test.file)
			}
			if test.environment != "" {
				t.Setenv("HERDBOOK_LISTEN", test.environment)
			}
			s, err := readSettings(file, test.flags)
			if err != nil || s.Listen != test.want {
				t.Errorf("listen = %q, %v, want %q", s.Listen, err, test.want)
			}
		})
	}
}

func TestSettingsDefaults(t *testing.T) {
	t.Setenv("HERDBOOK_TOKEN", "of the command line's")
	t.Setenv("HERDBOOK_URL", "http://example.org")
	s, err := readSettings("", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(s.Listen, s.Data, s.PublicURL, s.AnonymousRead, s.InsecureNoAuth, s.DefaultVisibility, s.MaxPlainBytes, s.MaxPushBytes, s.MaxAttachment, s.LFSBatchRate, s.VerifyOnRead, s.scrubPeriod, s.quotas, s.LogLevel, s.Hooks)
	if want := fmt.Sprint("127.0.0.1:8080", "./herdbook-data", "", "on", false, "public", 10<<20, int64(4)<<30, 64<<20, 1200, false, 720*time.Hour, []registry.Quota(nil), "info", []hookSettings(nil)); got != want {
		t.Errorf("defaults = %s, want %s as docs/operations.md says", got, want)
	}
}

func TestSettingsEveryKey(t *testing.T) {
	file := write(t, `
listen: 0.0.0.0:9000
data: /srv/herdbook
public_url: https://models.example.org/
anonymous_read: auto
default_visibility: private
max_plain_bytes: 1024
max_push_bytes: 1048576
max_attachment_bytes: 4096
lfs_batch_rate: 60
verify_on_read: true
scrub_period: 24h
quotas:
  - {models: "acme/*", size: 2GiB}
log_level: warn
hooks:
  - name: notify
    type: webhook
    url: https://ops.example.org/hook
    secret_file: /etc/secret
    models: ["acme/*"]
    events: [environment.promoted]
    allow_private: true
  - name: mirror
    type: ocipush
    repository: registry.example.org/models/{namespace}/{name}
    image_repository: registry.example.org/images/{name}
    no_referrers: true
    plain_http: true
    versions: ["v1.*"]
    environments: [production]
    user: robot
    secret_env: SECRET
    models: ["acme/*"]
    timeout: 12h
  - {name: copy, type: ocipush, repository: registry.example.org/copy, no_image: true, versions: ["v*"], docker_config: /etc/docker.json}
`)
	t.Setenv("HERDBOOK_MAX_PLAIN_BYTES", "2048")
	s, err := readSettings(file, map[string]any{"insecure_no_auth": false})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(s.Listen, s.Data, s.public, s.AnonymousRead, s.DefaultVisibility, s.MaxPlainBytes, s.MaxPushBytes, s.MaxAttachment, s.LFSBatchRate, s.VerifyOnRead, s.scrubPeriod, s.quotas, s.LogLevel, s.Hooks)
	want := fmt.Sprint("0.0.0.0:9000", "/srv/herdbook", "https://models.example.org/", "off", "private", 2048, 1048576, 4096, 60, true, 24*time.Hour, []registry.Quota{{Models: "acme/*", Bytes: 2 << 30}}, "warn",
		[]hookSettings{{
			Name: "notify", Type: "webhook", URL: "https://ops.example.org/hook", SecretFile: "/etc/secret", AllowPrivate: true, Models: []string{"acme/*"}, Events: []string{"environment.promoted"},
		}, {
			Name: "mirror", Type: "ocipush", Repository: "registry.example.org/models/{namespace}/{name}", ImageRepository: "registry.example.org/images/{name}", NoReferrers: true, PlainHTTP: true,
			Versions: []string{"v1.*"}, Environments: []string{"production"}, User: "robot", SecretEnv: "SECRET", Models: []string{"acme/*"}, Timeout: "12h", timeout: 12 * time.Hour,
		}, {Name: "copy", Type: "ocipush", Repository: "registry.example.org/copy", NoImage: true, Versions: []string{"v*"}, DockerConfig: "/etc/docker.json"}})
	if got != want {
		t.Errorf("settings = %s, want %s", got, want)
	}
}

func TestSettingsRefused(t *testing.T) {
	hook := func(lines string) string {
		return "hooks:\n  - name: notify\n    type: webhook\n    url: https://example.org\n    secret_env: SECRET\n" + lines
	}
	push := func(settings string) string { return "hooks: [{name: mirror, type: ocipush, " + settings + "}]" }
	const versions = "repository: registry.example.org/a, versions: ['v*']"
	tests := []struct {
		name, file, want string
		flags            map[string]any
	}{
		{"unknown key", "lisen: 127.0.0.1:0", "lisen", nil},
		{"unknown key of a hook", hook("    secert: x\n"), "secert", nil},
		{"secret in the file", hook("    secret: x\n"), "secret", nil},
		{"not YAML", "listen: [", "configuration", nil},
		{"wrong type", "max_plain_bytes: many", "max_plain_bytes", nil},
		{"no bytes", "max_plain_bytes: 0", "max_plain_bytes", nil},
		{"less than none", "max_push_bytes: -1", "max_push_bytes", nil},
		{"no bytes of an attachment", "max_attachment_bytes: 0", "max_attachment_bytes", nil},
		{"less than no requests", "lfs_batch_rate: -1", "lfs_batch_rate", nil},
		{"no time", "scrub_period: month", "scrub_period", nil},
		{"less than no time", "scrub_period: -1h", "scrub_period", nil},
		{"quota without a size", "quotas: [{models: acme/*}]", "quotas", nil},
		{"quota of no size", "quotas: [{models: acme/*, size: 2 dozen}]", "quotas", nil},
		{"quota beyond all numbers", "quotas: [{models: acme/*, size: 9000PiB}]", "quotas", nil},
		{"quota of no models", "quotas: [{size: 1GiB}]", "quotas", nil},
		{"quota of a bad pattern", "quotas: [{models: 'acme/[', size: 1GiB}]", "quotas", nil},
		{"no directory", `data: ""`, "data", nil},
		{"no port", "listen: 127.0.0.1", "HOST:PORT", nil},
		{"only a port", "listen: 8080", "HOST:PORT", nil},
		{"mode that is none", "anonymous_read: maybe", "anonymous_read", nil},
		{"visibility that is none", "default_visibility: all", "default_visibility", nil},
		{"no visibility", `default_visibility: ""`, "default_visibility", nil},
		{"everybody may do everything, for all", "", "refused", map[string]any{"listen": "0.0.0.0:0", "insecure_no_auth": true}},
		{"the same for all addresses", "", "refused", map[string]any{"listen": ":0", "insecure_no_auth": true}},
		{"the same for IPv6", "", "refused", map[string]any{"listen": "[::]:0", "insecure_no_auth": true}},
		{"the same by name", "", "refused", map[string]any{"listen": "example.org:0", "insecure_no_auth": true}},
		{"address without a scheme", "public_url: models.example.org", "public_url", nil},
		{"address of another scheme", "public_url: ftp://models.example.org", "public_url", nil},
		{"address with a path", "public_url: https://example.org/models", "public_url", nil},
		{"address with a query", "public_url: https://example.org?a", "public_url", nil},
		{"address with a fragment", `public_url: "https://example.org#a"`, "public_url", nil},
		{"address with a password", "public_url: https://a:b@example.org", "public_url", nil},
		{"address without a host", "public_url: https://", "public_url", nil},
		{"hook without a name", strings.Replace(hook(""), "name: notify", `name: ""`, 1), "hooks[0]", nil},
		{"hook with a bad name", strings.Replace(hook(""), "notify", "Notify", 1), "lower-case", nil},
		{"hook of another type", strings.Replace(hook(""), "webhook", "carrier-pigeon", 1), "carrier-pigeon", nil},
		{"hook without a secret", strings.Replace(hook(""), "    secret_env: SECRET\n", "", 1), "secret_file", nil},
		{"hook with two secrets", hook("    secret_file: /x\n"), "secret_file", nil},
		{"hook with a bad pattern", hook("    models: [\"[\"]\n"), "pattern", nil},
		{"hook for an event that is none", hook("    events: [version.eaten]\n"), "version.eaten", nil},
		{"hook with what another type has", hook("    repository: registry.example.org/a\n"), "ocipush", nil},
		{"push with what another type has", push(versions + ", events: [version.published]"), "events", nil},
		{"push to an address", push("repository: 'https://registry.example.org/a', versions: ['v*']"), "REGISTRY/NAME", nil},
		{"push to nowhere", push("versions: ['v*']"), "REGISTRY/NAME", nil},
		{"push to a template that is none", push("repository: 'registry.example.org/{model}', versions: ['v*']"), "{model}", nil},
		{"push of nothing", push("repository: registry.example.org/a"), "versions or environments", nil},
		{"push of a bad pattern", push("repository: registry.example.org/a, versions: ['[']"), "pattern", nil},
		{"push of a bad environment", push("repository: registry.example.org/a, environments: [latest]"), "environments", nil},
		{"push with a user and no password", push(versions + ", user: robot"), "secret_file", nil},
		{"push with a password and no user", push(versions + ", secret_env: SECRET"), "user", nil},
		{"push with two passwords", push(versions + ", user: robot, secret_env: SECRET, secret_file: /x"), "one of", nil},
		{"push with two ways to log in", push(versions + ", user: robot, secret_env: SECRET, docker_config: /x"), "not both", nil},
		{"push without time", push(versions + ", timeout: 0s"), "timeout", nil},
		{"two hooks of one name", hook("") + strings.TrimPrefix(hook(""), "hooks:\n"), "two hooks", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := ""
			if test.file != "" {
				file = write(t, test.file)
			}
			_, err := readSettings(file, test.flags)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("readSettings = %v, want an error of one line that says %q", err, test.want)
			}
		})
	}
	if _, err := readSettings(filepath.Join(t.TempDir(), "none.yaml"), nil); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("readSettings of a file that is not there = %v, want an error that names it", err)
	}
}

func TestLoopback(t *testing.T) {
	for listen, want := range map[string]bool{
		"127.0.0.1:0": true, "127.8.7.6:80": true, "[::1]:0": true, "localhost:0": true, "[::ffff:127.0.0.1]:0": true,
		"0.0.0.0:0": false, ":0": false, "[::]:0": false, "192.168.0.1:0": false, "localhost.example.org:0": false, "127.0.0.1.example.org:0": false,
	} {
		if got, err := isLoopback(listen); got != want || err != nil {
			t.Errorf("isLoopback(%q) = %v, %v, want %v", listen, got, err, want)
		}
		s, err := readSettings("", map[string]any{"listen": listen})
		if err != nil || (s.AnonymousRead == "on") != want {
			t.Errorf("anonymous_read auto with listen %s = %q, %v; want on: %v", listen, s.AnonymousRead, err, want)
		}
	}
}

func TestHookSecret(t *testing.T) {
	t.Setenv("HOOK_SECRET", "from the environment")
	file := write(t, "from a file\n")
	for _, test := range []struct {
		hook    hookSettings
		want    string
		problem string
	}{
		{hookSettings{Name: "a", SecretEnv: "HOOK_SECRET"}, "from the environment", ""},
		{hookSettings{Name: "a", SecretFile: file}, "from a file", ""},
		{hookSettings{Name: "a", SecretEnv: "HOOK_SECRET_NOT_SET"}, "", "HOOK_SECRET_NOT_SET is not set"},
		{hookSettings{Name: "a", SecretFile: file + ".none"}, "", "secret: open"},
	} {
		got, err := test.hook.secret()
		if got != test.want || (err == nil) != (test.problem == "") || (err != nil && !strings.Contains(err.Error(), test.problem)) {
			t.Errorf("secret of %+v = %q, %v; want %q, %q", test.hook, got, err, test.want, test.problem)
		}
	}
}
