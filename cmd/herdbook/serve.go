package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/herdbook/herdbook/api"
	"github.com/herdbook/herdbook/api/githttp"
	"github.com/herdbook/herdbook/api/lfs"
	"github.com/herdbook/herdbook/api/oci"
	"github.com/herdbook/herdbook/api/ssh"
	"github.com/herdbook/herdbook/hooks"
	"github.com/herdbook/herdbook/hooks/ocipush"
	"github.com/herdbook/herdbook/hooks/webhook"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
	"github.com/herdbook/herdbook/storage"
	"github.com/herdbook/herdbook/storage/blob"
	"github.com/herdbook/herdbook/web"
)

type serveCommand struct {
	Config         string `name:"config" env:"HERDBOOK_CONFIG" help:"YAML file with settings; flags and HERDBOOK_* variables go before it." placeholder:"FILE"`
	Listen         string `name:"listen" help:"Address to listen on (default 127.0.0.1:8080; HERDBOOK_LISTEN)." placeholder:"HOST:PORT"`
	SSHListen      string `name:"ssh-listen" help:"Address to take Git over SSH on (default: nowhere; HERDBOOK_SSH_LISTEN)." placeholder:"HOST:PORT"`
	Data           string `name:"data" help:"Data directory (default ./herdbook-data; HERDBOOK_DATA)." placeholder:"DIR"`
	PublicURL      string `name:"public-url" help:"Address at which clients reach the server (default: where it listens; HERDBOOK_PUBLIC_URL)." placeholder:"URL"`
	AnonymousRead  string `name:"anonymous-read" help:"Whether callers without a token read public models: on, off or auto, which is on for loopback (HERDBOOK_ANONYMOUS_READ)." placeholder:"MODE"`
	InsecureNoAuth bool   `name:"insecure-no-auth" help:"Let everybody do everything. For experiments; refused off loopback."`
	LogLevel       string `name:"log-level" help:"debug, info, warn or error (default info; HERDBOOK_LOG_LEVEL)." placeholder:"LEVEL"`
}

// Help describes the command.
func (serveCommand) Help() string {
	return "It keeps everything in the data directory, which it makes if it is missing, and listens until it gets SIGTERM or SIGINT; then it answers " +
		"what was asked and stops. On its first start it makes an access token for the administrator.\n\nExamples:\n\n  herdbook serve\n" +
		"  herdbook serve --listen 0.0.0.0:8080 --data /var/lib/herdbook --public-url https://models.example.org"
}

func (c serveCommand) flags() map[string]any {
	flags := map[string]any{}
	for key, value := range map[string]string{
		"listen": c.Listen, "ssh_listen": c.SSHListen, "data": c.Data, "public_url": c.PublicURL, "anonymous_read": c.AnonymousRead, "log_level": c.LogLevel,
	} {
		if value != "" {
			flags[key] = value
		}
	}
	if c.InsecureNoAuth {
		flags["insecure_no_auth"] = true
	}
	return flags
}

// Run serves until ctx ends.
func (c serveCommand) Run(ctx context.Context, t terminal) error {
	s, err := readSettings(c.Config, c.flags())
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return fmt.Errorf("log_level is debug, info, warn or error, not %q", s.LogLevel)
	}
	log := slog.New(slog.NewJSONHandler(t.err, &slog.HandlerOptions{Level: level}))
	if os.Getenv("GOGC") == "" {
		// What lives is a few megabytes, so that the collector runs often and has little to find.
		debug.SetGCPercent(250)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close()
	var sshListener net.Listener
	if s.SSHListen != "" {
		if sshListener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.SSHListen); err != nil {
			return fmt.Errorf("listen for SSH: %w", err)
		}
		defer sshListener.Close()
	}
	if s.public == nil {
		s.public = &url.URL{Scheme: "http", Host: listener.Addr().String()}
		if loopback, err := isLoopback(s.Listen); err == nil && !loopback {
			log.WarnContext(ctx, "public_url is not set: what the server says of its own address may not be where clients reach it", "url", s.public.String())
		}
	}
	srv, err := open(ctx, s, log)
	if err != nil {
		return err
	}
	if err := errors.Join(srv.assemble(), srv.firstToken(ctx, t.err)); err != nil {
		return errors.Join(err, srv.data.Close())
	}
	return srv.serve(ctx, listener, sshListener)
}

// server is everything that runs.
type server struct {
	settings
	log        *slog.Logger
	data       *storage.Data
	lifecycle  *lifecycle.Service
	dispatcher *hooks.Dispatcher
	handler    http.Handler
	ssh        *ssh.Server // nil when it is not served
}

// open opens the data directory and puts the parts together.
func open(ctx context.Context, s settings, log *slog.Logger) (_ *server, err error) {
	srv := &server{settings: s, log: log}
	if srv.data, err = storage.Open(ctx, storage.Config{Dir: s.Data, Log: log, MaxPushBytes: s.MaxPushBytes}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, srv.data.Close())
		}
	}()
	sinks, err := openHooks(s, srv.data)
	if err != nil {
		return nil, err
	}
	srv.dispatcher = hooks.New(hooks.Config{Hooks: sinks, Outbox: srv.data.Index, Journal: srv.data, Log: log})
	srv.lifecycle, err = lifecycle.New(lifecycle.Config{
		Journal: srv.data, Index: srv.data.Index, Repositories: repositories{srv.data.Repositories}, Blobs: blobs{srv.data.Blobs, s.VerifyOnRead}, Log: log,
		Visibility: registry.Visibility(s.DefaultVisibility), Route: srv.dispatcher.Route, Deployer: srv.dispatcher.Usable,
		MaxPlainBytes: s.MaxPlainBytes, Quotas: s.quotas, Poked: srv.dispatcher.Poke, TensorCache: srv.data.TensorLists(),
	})
	if err != nil {
		return nil, err
	}
	return srv, nil
}

func openHooks(s settings, data *storage.Data) ([]hooks.Hook, error) {
	var all []hooks.Hook
	for _, h := range s.Hooks {
		open := openWebhook
		if h.Type == "ocipush" {
			open = openPush
		}
		hook, err := open(s, h, data)
		if err != nil {
			return nil, fmt.Errorf("hook %s: %w", h.Name, err)
		}
		hook.Name, hook.Models = h.Name, h.Models
		all = append(all, hook)
	}
	return all, nil
}

func openWebhook(s settings, h hookSettings, _ *storage.Data) (hooks.Hook, error) {
	secret, err := h.secret()
	if err != nil {
		return hooks.Hook{}, err
	}
	sink, err := webhook.New(webhook.Config{
		URL: h.URL, Secret: secret, AllowPrivate: h.AllowPrivate, Source: s.public.String(), UserAgent: "herdbook/" + programVersion(),
	})
	events := make([]registry.EventType, len(h.Events))
	for i, name := range h.Events {
		events[i] = registry.EventType(name)
	}
	return hooks.Hook{Sink: sink, Events: events}, err
}

// pushTime is how long a push to another registry may take when nobody says otherwise.
const pushTime = 6 * time.Hour

func openPush(s settings, h hookSettings, data *storage.Data) (hooks.Hook, error) {
	config := ocipush.SinkConfig{
		Config:     ocipush.Config{PlainHTTP: h.PlainHTTP, UserAgent: "herdbook/" + programVersion()},
		Repository: h.Repository, ImageRepository: h.ImageRepository, NoImage: h.NoImage, NoReferrers: h.NoReferrers,
		Versions: h.Versions, Environments: h.Environments,
		Index: data.Index, Sources: ociSources(data, blobs{data.Blobs, s.VerifyOnRead}),
	}
	var err error
	switch {
	case h.DockerConfig != "":
		config.Credentials, err = ocipush.DockerConfig(h.DockerConfig)
	case h.User != "":
		var password string
		if password, err = h.secret(); err == nil {
			host, _, _ := strings.Cut(h.Repository, "/")
			config.Credentials, err = ocipush.Password(host+"/any", h.User, password)
		}
	}
	if err != nil {
		return hooks.Hook{}, err
	}
	sink, err := ocipush.NewSink(config)
	if err != nil {
		return hooks.Hook{}, err
	}
	return hooks.Hook{Sink: sink, Wants: sink.Wants, Timeout: cmp.Or(h.timeout, pushTime)}, nil
}

// assemble makes the HTTP server of the parts.
func (s *server) assemble() error {
	newKey := func() []byte {
		key := make([]byte, 32)
		rand.Read(key) // crypto/rand never fails
		return key
	}
	key, err := s.data.Secret("lfs-key", newKey)
	if err != nil {
		return fmt.Errorf("key of signed addresses: %w", err)
	}
	signer := lfs.NewSigner(key)
	positionKey, err := s.data.Secret("position-key", newKey)
	if err != nil {
		return fmt.Errorf("key of positions: %w", err)
	}
	tokenKey, err := s.data.Secret("oci-token-key", newKey)
	if err != nil {
		return fmt.Errorf("key of the tokens of OCI clients: %w", err)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counters := newCounters(metrics, s.data)
	index, content := s.data.Index, blobs{s.data.Blobs, s.VerifyOnRead}
	page := func(parts ...string) string { return s.public.JoinPath(parts...).String() }
	pages, err := web.New(web.Config{
		Index: index, Judge: s.lifecycle, Files: repositories{s.data.Repositories}, Blobs: content, Identity: api.Identity,
		Comparer: s.lifecycle, Revisions: api.Resolver{Index: index, Commits: repositories{s.data.Repositories}},
		PublicURL: s.public, Version: programVersion(),
	})
	if err != nil {
		return fmt.Errorf("pages: %w", err)
	}
	s.handler = api.New(api.Config{
		Index: index, Lifecycle: s.lifecycle, Commits: repositories{s.data.Repositories}, Store: s.data.Blobs, Content: uploads{content}, Sinks: s.dispatcher, Pages: pages,
		Log: s.log, Metrics: metrics, Ready: s.data.Ready, PublicURL: s.public,
		AnonymousRead: s.AnonymousRead == "on", NoAuth: s.InsecureNoAuth, PositionKey: positionKey, Version: programVersion(), MaxAttachmentBytes: s.MaxAttachment,
		Doors: []api.Door{
			githttp.New(githttp.Config{
				Models: index, Lifecycle: s.lifecycle, Transport: transport{s.data.Repositories, s.log},
				Lines: pushLines(s.public.Host, page), Pushed: counters.pushed, Log: s.log,
			}),
			lfs.New(lfs.Config{
				Index: index, Blobs: uploads{content}, Lifecycle: s.lifecycle, Signer: signer, PublicURL: s.public, Log: s.log,
				BatchRate: s.LFSBatchRate,
			}),
			oci.New(oci.Config{
				Index: index, Blobs: content, Uploads: ociUploads{content}, Lifecycle: s.lifecycle, Sessions: oci.Sessions{Key: positionKey},
				Tokens: oci.Tokens{Key: tokenKey}, PublicURL: s.public, Log: s.log,
			}),
		},
	})
	if s.SSHListen == "" {
		return nil
	}
	hostKey, err := s.data.Secret("ssh-host-key", ssh.NewHostKey)
	if err != nil {
		return fmt.Errorf("host key of SSH: %w", err)
	}
	s.ssh, err = ssh.New(ssh.Config{
		Index: index, Lifecycle: s.lifecycle, Transport: transport{s.data.Repositories, s.log},
		Lines: pushLines(s.public.Host, page), Pushed: counters.pushed,
		Authorization: func(m registry.Model, tokenID string, upload bool) (string, time.Duration) {
			return signer.Authorization(lfs.Session{Model: m.Name.String(), ModelID: m.ID, TokenID: tokenID, Upload: upload}, time.Now())
		},
		PublicURL: s.public, HostKey: hostKey, Log: s.log, Metrics: metrics, Drain: drain,
	})
	return err
}

// firstToken makes the administrator's token when there is no token at all. It is shown on a
// terminal only: anywhere else it would stay in a log.
func (s *server) firstToken(ctx context.Context, out io.Writer) error {
	some, err := s.data.Index.HasTokens(ctx)
	if err != nil || some {
		return err
	}
	secret, kept := api.NewToken("admin", access.Admin)
	kept.CreatedAt = time.Now().UTC().Truncate(time.Microsecond)
	// The file comes first: after a crash in between, the next start makes another token.
	path, err := s.data.WriteAdminToken(secret)
	if err != nil {
		return fmt.Errorf("token of the administrator: %w", err)
	}
	err = s.data.Commit(ctx, registry.Group{At: kept.CreatedAt, Actor: "herdbook", Records: []registry.Record{registry.TokenCreated{Token: kept}}})
	if err != nil {
		return err
	}
	if _, ok := out.(printable); ok {
		fmt.Fprintf(out, "\nThe administrator's access token, also kept in %s:\n\n  %s\n\n", path, secret)
		return nil
	}
	s.log.InfoContext(ctx, "an access token for the administrator was made", "file", path)
	return nil
}

// drain is how long requests may take to end when the server stops.
const drain = 30 * time.Second

// serve brings the models up to date, answers until ctx ends, and closes everything.
func (s *server) serve(ctx context.Context, listener, sshListener net.Listener) (err error) {
	defer func() { err = errors.Join(err, s.data.Close()) }()
	if err := s.lifecycle.Start(ctx); err != nil {
		return err
	}
	// Before anything runs that makes files: the socket is made under another umask.
	commands, err := listenAdmin(s.Data)
	if err != nil {
		return err
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	background.Go(func() { s.lifecycle.Run(work) })
	background.Go(func() { s.dispatcher.Run(work) })
	if s.scrubPeriod > 0 {
		background.Go(func() { s.data.Scrub(work, s.scrubPeriod, s.log) })
	}
	background.Go(func() { s.admin(work, commands) })
	background.Go(func() { expireUploads(work, s.data.Blobs, s.log) })
	defer background.Wait()
	defer stop()

	// No deadline for bodies: a model may take hours on a slow line.
	h := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(listener) }()
	sshFailed, endSSH := s.serveSSH(ctx, sshListener)
	defer endSSH()
	s.log.InfoContext(ctx, "serving", "listen", listener.Addr().String(), "url", s.public.String(), "data", s.Data, "version", programVersion())
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case err := <-sshFailed:
		return errors.Join(fmt.Errorf("serve SSH: %w", err), h.Close())
	case <-ctx.Done():
	}
	s.log.InfoContext(ctx, "stopping; requests that are under way may end", "within", drain)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := h.Shutdown(end); err != nil {
		s.log.WarnContext(ctx, "requests were cut off", "reason", err.Error())
		return h.Close()
	}
	return nil
}

// serveSSH answers over SSH, where it is wanted, until ctx ends or end is called, which waits for the sessions. Why it
// cannot go on is sent to failed.
func (s *server) serveSSH(ctx context.Context, listener net.Listener) (failed <-chan error, end func()) {
	if s.ssh == nil {
		return nil, func() {}
	}
	s.log.InfoContext(ctx, "serving SSH", "listen", listener.Addr().String(), "key", s.ssh.Fingerprint())
	ctx, stop := context.WithCancel(ctx)
	errs := make(chan error, 1)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.ssh.Serve(ctx, listener); err != nil {
			errs <- err
		}
	})
	return errs, func() {
		stop()
		serving.Wait()
	}
}

// Unfinished uploads are removed when nothing has come for uploadLife; they are looked at every
// uploadsEvery, and when the server starts.
const (
	uploadLife   = 24 * time.Hour
	uploadsEvery = time.Hour
)

// expireUploads removes what clients began and did not come back for, until ctx ends.
func expireUploads(ctx context.Context, store *blob.Dir, log *slog.Logger) {
	tick := time.NewTicker(uploadsEvery)
	defer tick.Stop()
	for {
		expired, err := store.ExpireUploads(ctx, time.Now().Add(-uploadLife))
		switch {
		case err != nil && ctx.Err() == nil:
			log.ErrorContext(ctx, "unfinished uploads cannot be removed", "error", err.Error())
		case expired > 0:
			log.InfoContext(ctx, "unfinished uploads were removed", "uploads", expired)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
