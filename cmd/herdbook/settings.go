package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/hooks/ocipush"
	"github.com/herdbook/herdbook/registry"
)

// settings are what the server is told: by flags, else by HERDBOOK_* variables, else by the
// file, else by the defaults.
type settings struct {
	Listen            string         `koanf:"listen"`
	SSHListen         string         `koanf:"ssh_listen"` // empty for no SSH
	Data              string         `koanf:"data"`
	PublicURL         string         `koanf:"public_url"`
	AnonymousRead     string         `koanf:"anonymous_read"` // auto, on or off; auto is on for loopback
	InsecureNoAuth    bool           `koanf:"insecure_no_auth"`
	DefaultVisibility string         `koanf:"default_visibility"`
	MaxPlainBytes     int64          `koanf:"max_plain_bytes"`
	MaxPushBytes      int64          `koanf:"max_push_bytes"`
	MaxAttachment     int64          `koanf:"max_attachment_bytes"`
	LFSBatchRate      int            `koanf:"lfs_batch_rate"` // requests a minute of one caller; 0 is any number
	VerifyOnRead      bool           `koanf:"verify_on_read"`
	ScrubPeriod       string         `koanf:"scrub_period"` // a duration; 0 reads nothing
	LogLevel          string         `koanf:"log_level"`
	Hooks             []hookSettings `koanf:"hooks"`
	Quotas            []struct {
		Models string `koanf:"models"`
		Size   string `koanf:"size"`
	} `koanf:"quotas"`

	quotas      []registry.Quota
	scrubPeriod time.Duration
	public      *url.URL
}

// hookSettings configure one hook. Secrets come from files or the environment, never from here.
type hookSettings struct {
	Name       string   `koanf:"name"`
	Type       string   `koanf:"type"` // webhook or ocipush
	SecretFile string   `koanf:"secret_file"`
	SecretEnv  string   `koanf:"secret_env"`
	Models     []string `koanf:"models"`

	// Of a webhook.
	URL          string   `koanf:"url"`
	AllowPrivate bool     `koanf:"allow_private"`
	Events       []string `koanf:"events"`

	// Of a push to another registry; see [ocipush.SinkConfig].
	Repository      string   `koanf:"repository"`
	ImageRepository string   `koanf:"image_repository"`
	NoImage         bool     `koanf:"no_image"`
	NoReferrers     bool     `koanf:"no_referrers"`
	PlainHTTP       bool     `koanf:"plain_http"`
	Versions        []string `koanf:"versions"`
	Environments    []string `koanf:"environments"`
	User            string   `koanf:"user"` // its password is the secret
	DockerConfig    string   `koanf:"docker_config"`
	Timeout         string   `koanf:"timeout"` // a duration

	timeout time.Duration
}

func defaults() map[string]any {
	return map[string]any{
		"listen": "127.0.0.1:8080", "data": "./herdbook-data", "anonymous_read": "auto",
		"default_visibility": string(registry.Public), "max_plain_bytes": 10 << 20, "max_push_bytes": 4 << 30, "max_attachment_bytes": api.DefaultMaxAttachmentBytes, "lfs_batch_rate": 1200, "verify_on_read": false, "scrub_period": "720h", "log_level": "info",
	}
}

// readSettings puts the sources together. Flags holds those that were given.
func readSettings(configFile string, flags map[string]any) (settings, error) {
	k := koanf.New(".")
	if err := k.Load(confmap.Provider(defaults(), "."), nil); err != nil {
		return settings{}, err
	}
	known := k.Keys()
	known = append(known, "public_url", "insecure_no_auth", "ssh_listen")
	if configFile != "" {
		given := koanf.New(".")
		if err := given.Load(file.Provider(configFile), yaml.Parser()); err != nil {
			return settings{}, fmt.Errorf("configuration %s: %w", configFile, err)
		}
		for _, name := range slices.Sorted(maps.Keys(given.Raw())) {
			if name != "hooks" && name != "quotas" && !slices.Contains(known, name) {
				return settings{}, fmt.Errorf("configuration %s: there is no setting %q", configFile, name)
			}
		}
		if err := k.Merge(given); err != nil {
			return settings{}, fmt.Errorf("configuration %s: %w", configFile, err)
		}
	}
	environment := env.Provider(".", env.Opt{Prefix: "HERDBOOK_", TransformFunc: func(name, value string) (string, any) {
		key := strings.ToLower(strings.TrimPrefix(name, "HERDBOOK_"))
		if !slices.Contains(known, key) {
			return "", nil // of the command line's, such as HERDBOOK_TOKEN
		}
		return key, value
	}})
	if err := k.Load(environment, nil); err != nil {
		return settings{}, fmt.Errorf("settings in the environment: %w", err)
	}
	if err := k.Load(confmap.Provider(flags, "."), nil); err != nil {
		return settings{}, err
	}
	var s settings
	err := k.UnmarshalWithConf("", &s, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		ErrorUnused: true, WeaklyTypedInput: true, Result: &s, TagName: "koanf",
	}})
	if err != nil {
		return s, fmt.Errorf("configuration %s: %s", configFile, strings.Join(strings.Fields(err.Error()), " "))
	}
	return s, s.check()
}

func (s *settings) check() error {
	loopback, err := isLoopback(s.Listen)
	if err != nil {
		return err
	}
	if s.SSHListen != "" {
		if _, _, err := net.SplitHostPort(s.SSHListen); err != nil {
			return fmt.Errorf("ssh_listen %q is not of the form HOST:PORT", s.SSHListen)
		}
	}
	switch s.AnonymousRead {
	case "on", "off":
	case "auto":
		s.AnonymousRead = "off"
		if loopback {
			s.AnonymousRead = "on"
		}
	default:
		return fmt.Errorf("anonymous_read is auto, on or off, not %q", s.AnonymousRead)
	}
	if s.InsecureNoAuth && !loopback {
		return fmt.Errorf("--insecure-no-auth lets everybody do everything and is refused with --listen %s; listen on 127.0.0.1 for experiments, or use tokens", s.Listen)
	}
	if _, err := registry.ParseVisibility(s.DefaultVisibility, ""); err != nil || s.DefaultVisibility == "" {
		return fmt.Errorf("default_visibility is public, internal or private, not %q", s.DefaultVisibility)
	}
	if s.Data == "" {
		return errors.New("data names no directory")
	}
	if s.scrubPeriod, err = time.ParseDuration(s.ScrubPeriod); err != nil || s.scrubPeriod < 0 {
		return fmt.Errorf("scrub_period is a time such as 720h, in which every file is read once, or 0; not %q", s.ScrubPeriod)
	}
	for _, q := range s.Quotas {
		bytes, err := parseSize(q.Size)
		if _, bad := path.Match(q.Models, ""); err != nil || bad != nil || q.Models == "" {
			return fmt.Errorf("quotas: a quota has models, a pattern such as acme/*, and a size such as 100GiB; not %q and %q", q.Models, q.Size)
		}
		s.quotas = append(s.quotas, registry.Quota{Models: q.Models, Bytes: bytes})
	}
	if s.MaxPlainBytes < 1 || s.MaxPushBytes < 1 {
		return errors.New("max_plain_bytes and max_push_bytes are numbers of bytes, 1 or more")
	}
	if s.MaxAttachment < 1 {
		return errors.New("max_attachment_bytes is a number of bytes, 1 or more")
	}
	if s.LFSBatchRate < 0 {
		return errors.New("lfs_batch_rate is a number of requests a minute, or 0 for no limit")
	}
	if s.PublicURL == "" {
		return s.checkHooks()
	}
	s.public, err = url.Parse(s.PublicURL)
	if err != nil || (s.public.Scheme != "http" && s.public.Scheme != "https") || s.public.Host == "" || s.public.RawQuery != "" || s.public.Fragment != "" || s.public.User != nil ||
		strings.Trim(s.public.Path, "/") != "" {
		return fmt.Errorf("public_url %q is not of the form https://HOST or https://HOST:PORT", s.PublicURL)
	}
	return s.checkHooks()
}

// units are those of sizes in the configuration.
var units = map[string]int64{
	"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15,
}

// parseSize reads a number of bytes such as 512MiB.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "BKMGTPi ")
	unit, known := units[strings.TrimSpace(text[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !known || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is no size such as 512MiB", text)
	}
	return n * unit, nil
}

// isLoopback reports whether only this machine reaches an address to listen on.
func isLoopback(listen string) (bool, error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false, fmt.Errorf("listen %q is not of the form HOST:PORT", listen)
	}
	if host == "localhost" {
		return true, nil
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback(), nil
}

var hookName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

func (s *settings) checkHooks() error {
	seen := map[string]bool{}
	for i, h := range s.Hooks {
		at := fmt.Sprintf("hooks[%d]", i)
		if h.Name != "" {
			at = "hook " + h.Name
		}
		if err := s.Hooks[i].check(); err != nil {
			return fmt.Errorf("configuration: %s: %w", at, err)
		}
		if seen[h.Name] {
			return fmt.Errorf("configuration: two hooks are named %s", h.Name)
		}
		seen[h.Name] = true
	}
	return nil
}

func (h *hookSettings) check() error {
	if !hookName.MatchString(h.Name) {
		return errors.New("a hook's name is a lower-case letter, then at most 62 of a-z, 0-9 and '-'")
	}
	for _, pattern := range h.Models {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("models: %q is not a pattern such as acme/*", pattern)
		}
	}
	switch h.Type {
	case "webhook":
		return h.checkWebhook()
	case "ocipush":
		return h.checkPush()
	}
	return fmt.Errorf("type is webhook or ocipush, not %q", h.Type)
}

func (h *hookSettings) checkWebhook() error {
	if h.Repository != "" || h.ImageRepository != "" || h.NoImage || h.NoReferrers || h.PlainHTTP || h.Versions != nil || h.Environments != nil ||
		h.User != "" || h.DockerConfig != "" || h.Timeout != "" {
		return errors.New("a webhook has a url, a secret, models, events and allow_private; the rest is for type ocipush")
	}
	if (h.SecretFile == "") == (h.SecretEnv == "") {
		return errors.New("set one of secret_file and secret_env")
	}
	for _, name := range h.Events {
		if !slices.Contains(registry.EventTypes, registry.EventType(name)) {
			return fmt.Errorf("events: there is no event %q", name)
		}
	}
	return nil
}

func (h *hookSettings) checkPush() (err error) {
	secrets := 0
	for _, from := range []string{h.SecretFile, h.SecretEnv} {
		if from != "" {
			secrets++
		}
	}
	switch {
	case h.URL != "" || h.AllowPrivate || h.Events != nil:
		return errors.New("url, allow_private and events are for type webhook; a push has a repository, and versions or environments")
	case h.DockerConfig != "" && (h.User != "" || secrets > 0):
		return errors.New("set docker_config, or user and a secret, not both")
	case h.DockerConfig == "" && ((h.User == "") != (secrets == 0) || secrets > 1):
		return errors.New("set user, and one of secret_file and secret_env with the password, or none of them")
	}
	if h.Timeout != "" {
		if h.timeout, err = time.ParseDuration(h.Timeout); err != nil || h.timeout <= 0 {
			return fmt.Errorf("timeout is a time such as 6h, not %q", h.Timeout)
		}
	}
	_, err = ocipush.NewSink(ocipush.SinkConfig{Repository: h.Repository, ImageRepository: h.ImageRepository, NoImage: h.NoImage, Versions: h.Versions, Environments: h.Environments})
	return err
}

// secret reads the hook's secret.
func (h hookSettings) secret() (string, error) {
	if h.SecretEnv != "" {
		if v := os.Getenv(h.SecretEnv); v != "" {
			return v, nil
		}
		return "", fmt.Errorf("the variable %s is not set", h.SecretEnv)
	}
	data, err := os.ReadFile(h.SecretFile)
	if err != nil {
		return "", fmt.Errorf("secret: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
