// Package gitrepo keeps the bare Git repositories of the models: it creates them, serves fetches and pushes,
// reads them and writes the server's own records into them.
//
// The git program speaks the protocol and writes; go-git reads. Every git runs with a clean environment and the
// server's configuration, which no repository can override, and no git outlives the server.
//
// A push is checked while its objects are still in quarantine, see [Push]. Its refs then move, or none of them
// does, and the client is told so only after [ReceivePack].Finish returned. Git alone does not make a ref
// durable: [Repository.Sync] does, and Finish has to call it.
//
// Who may do what is not decided here.
package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/internal/durable"
)

// Config says where the repositories are and what a client may cost.
type Config struct {
	// Dir holds the repositories, as NAMESPACE/NAME.git. Open makes it. One Store uses it at a time.
	Dir string
	// RunDir holds the hook program, its socket and answers to fetches, which are made anew by each Open; nobody else's files. It must
	// allow programs to be executed. Default: ".run" in Dir.
	RunDir string
	// Git is the git program, 2.39 or newer. Default: "git" in PATH.
	Git string
	// Log takes what the operator should know. Default: nothing is logged.
	Log *slog.Logger

	// MaxFetches is the number of fetches that are answered at a time, each with a process that may hold
	// some ten MB; others wait for their turn. Default: 4 for each CPU.
	MaxFetches int
	// MaxAnswerBytes is how much answers to fetches may take of the disk together, in RunDir: those on their way, and those that
	// are kept for clients that ask for the same. Above it each goes on as fast as its client reads. Default: 1 GiB.
	MaxAnswerBytes int64
	// MaxAnswerFileBytes is the longest answer that is kept. A longer one is shared by clients that ask while it is being made, takes no
	// more of the disk ahead of the fastest of them, and is let go of behind the slowest. Default: 256 MiB.
	MaxAnswerFileBytes int64
	// AnswerIdle is how long an answer is kept that nobody asks for. Default: 10 min.
	AnswerIdle time.Duration
	// MaxPushBytes is the largest pack that a push may bring. Default: 4 GiB.
	MaxPushBytes int64
	// MaxPushRefs is the largest number of refs that one push may move. Default: 50,000.
	MaxPushRefs int
	// MaxPushObjects is the largest number of new files that one push may bring. Default: 1,000,000.
	MaxPushObjects int
	// MaxFiles is the largest number of files and directories of one commit that is listed. Default: 100,000.
	MaxFiles int
	// MaxDepth is the deepest nesting of directories that is listed. Default: 64.
	MaxDepth int
	// MaxCommits is the longest history that is walked. Default: 100,000.
	MaxCommits int
	// MaxPacks is the number of packs from which on Repack joins them. Default: 50.
	MaxPacks int
	// MaxRepackBytes is the largest repository whose packs Repack joins to one, while pushes to it wait.
	// Default: 2 GiB.
	MaxRepackBytes int64

	// CloseWait is how long Close waits for fetches and pushes before it kills them. Default: 10 s.
	CloseWait time.Duration

	// FS changes the disk, beside what git does; tests break it. The default works.
	FS durable.FS
}

func (c *Config) setDefaults() {
	setDefault(&c.RunDir, filepath.Join(c.Dir, ".run"))
	setDefault(&c.Git, "git")
	setDefault(&c.Log, slog.New(slog.DiscardHandler))
	setDefault(&c.MaxFetches, 4*runtime.NumCPU())
	setDefault(&c.MaxAnswerBytes, 1<<30)
	setDefault(&c.MaxAnswerFileBytes, 256<<20)
	setDefault(&c.AnswerIdle, 10*time.Minute)
	setDefault(&c.MaxPushBytes, 4<<30)
	setDefault(&c.MaxPushRefs, 50_000)
	setDefault(&c.MaxPushObjects, 1_000_000)
	setDefault(&c.MaxFiles, 100_000)
	setDefault(&c.MaxDepth, 64)
	setDefault(&c.MaxCommits, 100_000)
	setDefault(&c.MaxPacks, 50)
	setDefault(&c.MaxRepackBytes, 2<<30)
	setDefault(&c.CloseWait, 10*time.Second)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Beside the namespaces, whose names never begin with a dot, Dir holds:
const (
	lockFile = ".lock"  // flock(2): exclusive while a Store opens, then shared by it and by the git programs that write
	asideDir = ".aside" // repositories that were moved out of the way, for a person to look at
	trashDir = ".trash" // removed repositories until they are deleted
	// and unfinished repositories of [durable.TempName].
)

// How long Open waits for the lock: the git programs of a killed server end within moments.
const lockWait = 10 * time.Second

// Store is a directory of repositories. It is safe for concurrent use.
type Store struct {
	dir     string
	cfg     Config
	log     *slog.Logger
	fsys    durable.FS
	program string   // the git program, absolute
	env     []string // of every git
	lock    *os.File
	empty   *Repository // what a model without a repository is advertised as
	spawner *spawner
	hooks   *hookServer
	fetches chan struct{} // holds a token for each fetch that runs
	readers readers

	snapshots *snapshots
	caps      capabilities
	answers   *answers

	// How often a client that waits for Finish hears from us.
	keepAlive time.Duration

	fetchAdvert func(context.Context) ([]byte, error) // what a fetch by protocol v2 begins with, whatever the repository

	killed context.Context // done when Close lost its patience
	kill   context.CancelFunc

	mu     sync.Mutex
	state  state
	active int        // operations that run
	idle   *sync.Cond // signalled when active falls to 0

	names   sync.Mutex          // held while the name of a repository comes or goes
	pushing map[string]int      // pushes by the path of their repository; guarded by names
	made    map[string]struct{} // paths of the repositories whose names are known to be durable; guarded by names
	writers sync.Map            // path of a repository -> *sync.RWMutex, which its writers share and a repack holds alone
}

type state int

const (
	open     state = iota
	draining       // fetches and pushes are finished, and may still read and write for that
	closed
)

// Open opens the directory. It removes what a crash left there, after it waited for git programs that a
// killed server may have left, and it makes sure that the git program is new enough and the hook works.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("no directory for the repositories is configured")
	}
	s := &Store{fsys: cfg.FS, keepAlive: 5 * time.Second, snapshots: newSnapshots(), made: map[string]struct{}{}, pushing: map[string]int{}}
	if err := s.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, cfg Config) (err error) {
	s.idle = sync.NewCond(&s.mu)
	s.killed, s.kill = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.fsys.MkdirAll(cfg.Dir, 0o750); err != nil {
		return fmt.Errorf("make the directory of the repositories: %w", err)
	}
	// Git reports real paths, and ours have to be the same.
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	if cfg.Dir, err = filepath.EvalSymlinks(cfg.Dir); err != nil {
		return err
	}
	cfg.setDefaults()
	if cfg.RunDir, err = filepath.Abs(cfg.RunDir); err != nil {
		return err
	}
	s.dir, s.cfg, s.log = cfg.Dir, cfg, cfg.Log
	s.fetches = make(chan struct{}, cfg.MaxFetches)
	s.fetchAdvert = s.readFetchAdvert()

	if s.program, err = exec.LookPath(cfg.Git); err != nil {
		return fmt.Errorf("the git program is missing (%w): %s", err, howToInstall)
	}
	if s.program, err = filepath.Abs(s.program); err != nil {
		return err
	}
	s.spawner = newSpawner()
	s.env = environment(cfg)
	if err := s.checkVersion(ctx); err != nil {
		return err
	}
	if err := s.takeLock(ctx); err != nil {
		return err
	}
	if err := s.removeLeftovers(ctx); err != nil {
		return fmt.Errorf("remove what a crash left: %w", err)
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_SH); err != nil {
		return fmt.Errorf("share the lock: %w", err)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	if s.answers, err = newAnswers(cfg); err != nil {
		return fmt.Errorf("make a directory for answers: %w", err)
	}
	emptyPath := filepath.Join(cfg.RunDir, "empty.git")
	if err := os.RemoveAll(emptyPath); err != nil {
		return err
	}
	if err := initRepository(s.fsys, emptyPath); err != nil {
		return err
	}
	s.empty = &Repository{store: s, path: emptyPath}
	if s.hooks, err = openHookServer(s); err != nil {
		return err
	}
	if err := s.hooks.try(ctx); err != nil {
		return fmt.Errorf("try the hook in %s, which has to allow programs: %w", cfg.RunDir, err)
	}
	return nil
}

// Close refuses new fetches and pushes, waits for those that run, kills what takes longer than the
// configuration allows, and waits for that. It may be called again.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.state != open {
		for s.state != closed {
			s.idle.Wait()
		}
		s.mu.Unlock()
		return nil
	}
	s.state = draining
	patience := time.AfterFunc(s.cfg.CloseWait, s.kill)
	for s.active > 0 {
		s.idle.Wait()
	}
	s.mu.Unlock()
	patience.Stop()
	s.kill()

	var errs []error
	if s.hooks != nil {
		errs = append(errs, s.hooks.close())
	}
	if s.spawner != nil {
		s.spawner.close()
	}
	errs = append(errs, s.readers.close())
	if s.answers != nil {
		errs = append(errs, s.answers.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	s.mu.Lock()
	s.state = closed
	s.idle.Broadcast()
	s.mu.Unlock()
	return errors.Join(errs...)
}

// begin admits an operation. Its context ends with ctx and when Close kills what is left; done must be called.
// Fetches and pushes are admitted until Close is called, and what they need themselves until it returns.
func (s *Store) begin(ctx context.Context, upTo state) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state > upTo || s.killed.Err() != nil {
		return nil, nil, fmt.Errorf("the repositories are being closed: %w", registry.ErrUnavailable)
	}
	s.active++
	ctx, cancel := s.untilKilled(ctx)
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.active--; s.active == 0 {
			s.idle.Broadcast()
		}
	}, nil
}

// untilKilled is ctx that also ends when Close loses its patience.
func (s *Store) untilKilled(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.killed, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// share keeps repacks of a repository away while something is written to it.
func (s *Store) share(r *Repository) (done func()) {
	lock := s.writerLock(r)
	lock.RLock()
	return lock.RUnlock
}

func (s *Store) writerLock(r *Repository) *sync.RWMutex {
	lock, _ := s.writers.LoadOrStore(r.path, new(sync.RWMutex))
	return lock.(*sync.RWMutex)
}

const howToInstall = "install git 2.39 or newer (Debian and Ubuntu: apt-get install git; Alpine: apk add git; Fedora: dnf install git)"

var gitVersion = regexp.MustCompile(`^git version (\d+)\.(\d+)`)

func (s *Store) checkVersion(ctx context.Context) error {
	out, err := s.command(ctx, "", "--version").output()
	if err != nil {
		return fmt.Errorf("ask git for its version: %w", err)
	}
	text := strings.TrimSpace(string(out))
	m := gitVersion.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%s says its version is %q: %s", s.program, text, howToInstall)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 2 || major == 2 && minor < 39 {
		return fmt.Errorf("%s is too old (%s): %s", s.program, text, howToInstall)
	}
	return nil
}

// takeLock takes the lock for ourselves alone. The git programs that write to the repositories share the
// server's lock, so when we have it, none that a killed server left can still move a ref.
func (s *Store) takeLock(ctx context.Context) error {
	lock, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock: %w", err)
	}
	s.lock = lock
	for deadline := time.Now().Add(lockWait); ; {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return fmt.Errorf("lock %s, which another server or a git that it left holds: %w", lock.Name(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeLeftovers removes what programs that were killed left: half-made and half-removed repositories, quarantined
// objects, files being written, and locks. We hold the lock of the directory alone, so no git of ours
// runs; a git that an operator started by hand at this moment would lose its locks.
func (s *Store) removeLeftovers(ctx context.Context) error {
	if err := s.fsys.RemoveTemps(s.dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(s.dir, trashDir)); err != nil {
		return err
	}
	names, err := s.list(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.removeLeftoversIn(s.path(name)); err != nil {
			return fmt.Errorf("in the repository of %s: %w", name, err)
		}
	}
	return nil
}

// What killed git programs leave, by directory of the repository.
var leftovers = map[string][]string{
	"":             {"*.lock", "*.new", "fast_import_crash_*"},
	"objects":      {"tmp_objdir-*"},
	"objects/info": {"*.lock", ".herdbook-tmp-*"},
	"objects/pack": {"tmp_*", ".tmp-*", "*.lock"},
}

func (s *Store) removeLeftoversIn(path string) error {
	for dir := range leftovers {
		if err := s.removeLeftoversFrom(path, dir); err != nil {
			return err
		}
	}
	return filepath.WalkDir(filepath.Join(path, "refs"), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // there is no repository any more, or not all of it: others find that out
		}
		if err == nil && !e.IsDir() && strings.HasSuffix(path, ".lock") {
			err = s.removeLeftover(path)
		}
		return err
	})
}

// removeLeftoversFrom removes them from one directory of a repository.
func (s *Store) removeLeftoversFrom(path, dir string) error {
	patterns := leftovers[dir]
	dir = filepath.Join(path, dir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		for _, pattern := range patterns {
			if ok, _ := filepath.Match(pattern, e.Name()); ok {
				if err := s.removeLeftover(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *Store) removeLeftover(path string) error {
	s.log.Info("removing what a killed git left", "path", path)
	return os.RemoveAll(path)
}

// closeAnd closes c and returns the first error.
func closeAnd(err error, c io.Closer) error {
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
}
