package gitrepo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

// Service is one side of Git's protocol, by the name that clients ask for.
type Service string

// The two services.
const (
	UploadPackService  Service = "git-upload-pack"  // fetches
	ReceivePackService Service = "git-receive-pack" // pushes
)

// ParseService reads the name of a service. The error is a [registry.FieldError] on "service".
func ParseService(s string) (Service, error) {
	switch service := Service(s); service {
	case UploadPackService, ReceivePackService:
		return service, nil
	}
	return "", registry.Invalid("service", "there is no Git service %.40q here", s)
}

var protocolVersion = regexp.MustCompile(`^version=[0-2]$`)

// protocol picks what git is to know of a Git-Protocol header: nothing but the highest version that the service
// speaks, and only one written as Git writes it.
// Source: gitprotocol-v2(5), "HTTP Transport"; keys are separated by colons.
func (s Service) protocol(header string) (env string, version int) {
	for key := range strings.SplitSeq(header, ":") {
		if protocolVersion.MatchString(key) {
			version = max(version, int(key[len(key)-1]-'0'))
		}
	}
	if s == ReceivePackService && version == 2 {
		version = 0 // v2 has no pushes, and clients that ask for it anyway expect v0
	}
	return fmt.Sprintf("GIT_PROTOCOL=version=%d", version), version
}

// flusher is an [http.ResponseWriter], for one.
type flusher interface{ Flush() }

// client writes to a client until that fails once; from then on it does nothing, since the work for a client that
// is gone must still come to its end.
type client struct {
	w   io.Writer
	err error
}

// send writes b so that the client gets it at once.
func (c *client) send(b []byte) {
	if c.write(b); len(b) > 0 {
		c.flush()
	}
}

func (c *client) write(b []byte) {
	if c.err == nil && len(b) > 0 {
		_, c.err = c.w.Write(b)
	}
}

func (c *client) flush() {
	if f, ok := c.w.(flusher); ok && c.err == nil {
		f.Flush()
	}
}

// flushed is a writer that sends each write at once.
type flushed struct{ *client }

func (f flushed) Write(p []byte) (int, error) {
	if f.send(p); f.err != nil {
		return 0, f.err
	}
	return len(p), nil
}

// AdvertiseRefs writes what a fetch or a push begins with: the answer to "GET info/refs?service=". A nil
// repository is that of a model that does not exist yet and is advertised as an empty one, so that the first push
// can create it. A repository that is not there is a [registry.ErrNotFound].
func (s *Store) AdvertiseRefs(ctx context.Context, repo *Repository, service Service, gitProtocol string, w io.Writer) error {
	return s.advertise(ctx, repo, service, gitProtocol, true, w)
}

// advertise writes what a fetch or a push begins with. Over HTTP protocols v0 and v1 have the service named in front of it.
// Source: gitprotocol-http(5), "Smart Server Response".
func (s *Store) advertise(ctx context.Context, repo *Repository, service Service, gitProtocol string, named bool, w io.Writer) error {
	ctx, done, err := s.begin(ctx, open)
	if err != nil {
		return err
	}
	defer done()
	if repo == nil {
		repo = s.empty
	}
	_, version := service.protocol(gitProtocol)
	if version == 2 {
		if err := repo.mustExist(); err != nil {
			return err
		}
		// It lists what the server can do, and no refs.
		advert, err := s.fetchAdvert(ctx)
		if err == nil {
			_, err = w.Write(advert)
		}
		return err
	}
	snap, err := repo.snapshotOrGit(ctx)
	if err != nil {
		return err
	}
	if snap != nil {
		caps, err := s.capabilities(ctx, repo, service, snap)
		if err == nil {
			return advertise(service, version, named, snap, caps, w)
		}
		s.log.WarnContext(ctx, "git does not advertise a repository as expected", "model", repo.name, "reason", err.Error())
	}
	return s.advertiseByGit(ctx, repo, service, version, named, w)
}

// advertiseByGit lets git list the refs, by protocol v0 or v1.
func (s *Store) advertiseByGit(ctx context.Context, repo *Repository, service Service, version int, named bool, w io.Writer) error {
	cmd := s.advertiseCommand(ctx, repo, service, version)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.start(); err != nil {
		return err
	}
	// The status of the answer can still be an error until the first byte is written.
	body := bufio.NewReaderSize(out, copyBufferSize)
	if _, err := body.Peek(1); err != nil {
		if gitErr := cmd.wait(); gitErr != nil {
			err = gitErr
		}
		return fmt.Errorf("advertise the refs of %s: %w", repo.name, err)
	}
	if named {
		head := appendPacket(nil, []byte("# service="+string(service)+"\n"))
		_, err = w.Write(append(head, flushPacket...))
	}
	if err == nil {
		_, err = body.WriteTo(w)
	}
	if err != nil {
		cmd.abandon(out)
		return err
	}
	return cmd.wait()
}

func (s *Store) advertiseCommand(ctx context.Context, repo *Repository, service Service, version int) *process {
	cmd := s.command(ctx, repo.path, service.args("--http-backend-info-refs", repo.path)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("GIT_PROTOCOL=version=%d", version))
	return cmd
}

// args are the arguments of git that serve s; without a mode, for a client that stays connected.
func (s Service) args(mode, path string) []string {
	args := []string{strings.TrimPrefix(string(s), "git-")}
	if s == UploadPackService {
		args = append(args, "--strict") // the path is a repository, not a place to look for one
	}
	if mode != "" {
		args = append(args, mode)
	}
	return append(args, "--", path)
}

// readFetchAdvert returns a function that reads the advertisement of protocol v2 once.
func (s *Store) readFetchAdvert() func(context.Context) ([]byte, error) {
	var mu sync.Mutex
	var advert []byte
	return func(ctx context.Context) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if advert != nil {
			return advert, nil
		}
		out, err := s.advertiseCommand(ctx, s.empty, UploadPackService, 2).output()
		if err == nil {
			advert = out
		}
		return out, err
	}
}

// UploadPack is one request of a fetch.
type UploadPack struct {
	Repository  *Repository
	GitProtocol string    // the header
	In          io.Reader // the request, to its end; fails once the client is gone
	Out         io.Writer // is flushed after each write if it has a Flush method
	// Stop is called when nothing more of In is wanted, which then ends; nil where it ends by itself.
	Stop func()
	// Allowed is asked before each request of a client that stays connected; its error ends the fetch. By default all are
	// answered.
	Allowed func(ctx context.Context) error
}

// How long a fetch waits for others to end.
const fetchWait = time.Minute

// UploadPack answers one request of a fetch. It may write before it has read all. The git that works for
// it is killed when ctx ends. When too many fetches run for too long it fails with [registry.ErrUnavailable].
func (s *Store) UploadPack(ctx context.Context, req UploadPack) error {
	ctx, done, err := s.begin(ctx, open)
	if err != nil {
		return err
	}
	defer done()
	if err := req.Repository.mustExist(); err != nil {
		return err
	}
	in := requestReaders.Get().(*bufio.Reader)
	in.Reset(req.In)
	defer requestReaders.Put(in)
	defer in.Reset(nil)
	// Before it takes a turn from others a client has to say what it wants: most of what a fetch asks for is
	// no longer than this.
	begins, readErr := in.Peek(in.Size())
	_, version := UploadPackService.protocol(req.GitProtocol)
	list, ok := parseLsRefs(begins)
	if ok && version == 2 {
		snap, err := req.Repository.snapshotOrGit(ctx)
		if err != nil {
			return err
		}
		if snap != nil {
			if err := list.answer(snap, req.Out); err != nil {
				return fmt.Errorf("list the refs of %s: %w", req.Repository.name, err)
			}
			return nil
		}
	}
	switch request := (fetchRequest{req: req, sharedFetch: sharedFetch{version: version}}); {
	case ok && version == 2: // of refs that only git can list
		err = s.uploadPack(ctx, req.Repository, version, in, flushed{&client{w: req.Out}})
	case errors.Is(readErr, io.EOF):
		if shared, ok := parseShareable(begins, version); ok {
			request.sharedFetch = shared
		}
		request.text = bytes.Clone(begins)
		err = s.answerFetch(ctx, request)
	case errors.Is(readErr, io.ErrUnexpectedEOF):
		err = registry.Invalid("", "the request ends before its end")
	case readErr != nil:
		err = readErr
	default: // it has to be there before others wait for it
		if request.file, err = s.spool(in); err == nil {
			err = s.answerFetch(ctx, request)
		}
	}
	if err != nil {
		return fmt.Errorf("fetch of %s: %w", req.Repository.name, err)
	}
	return nil
}

// fetchRequest is a fetch whose request is there.
type fetchRequest struct {
	req UploadPack
	sharedFetch
	text []byte
	file *os.File // of what is too long for text
}

// spool keeps what in yields in a file without a name, so that nothing of it is left whatever happens.
func (s *Store) spool(in io.Reader) (_ *os.File, err error) {
	f, err := os.CreateTemp(s.answers.dir, "request-")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		_, err = io.Copy(f, in)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// requestReaders hold what fetches begin with.
var requestReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 64<<10) }}

// uploadPack lets git answer one request of a fetch.
func (s *Store) uploadPack(ctx context.Context, repo *Repository, version int, in io.Reader, w io.Writer) error {
	return s.runUploadPack(ctx, repo, version, "--stateless-rpc", in, w, func() {})
}

// runUploadPack lets git talk to a client that fetches. Stop ends in, when git has ended.
func (s *Store) runUploadPack(ctx context.Context, repo *Repository, version int, mode string, in io.Reader, w io.Writer, stop func()) error {
	cmd := s.command(ctx, repo.path, UploadPackService.args(mode, repo.path)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("GIT_PROTOCOL=version=%d", version))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.start(); err != nil {
		return err
	}
	var feeding sync.WaitGroup
	feeding.Go(func() { _ = feed(stdin, in) })
	defer feeding.Wait()
	defer stop()

	buf := getCopyBuffer()
	defer putCopyBuffer(buf)
	for {
		n, err := out.Read(*buf)
		if n > 0 {
			if _, err := w.Write((*buf)[:n]); err != nil {
				cmd.abandon(out)
				return fmt.Errorf("pass on the answer: %w", err)
			}
		}
		if err != nil {
			break
		}
	}
	err = cmd.wait()
	if (exitCode(err) == exitFatal || crashed(err)) && ctx.Err() == nil {
		// A client that asks for what there is not, or that does not speak the protocol. Where git has an
		// answer for it, that was sent.
		s.log.DebugContext(ctx, "git does not take a request", "model", repo.name, "reason", err.Error())
		err = registry.Invalid("", "the request is not one of Git's protocol, or names what is not there")
	}
	return err
}

// exitFatal is how git ends when it gives up. Source: git, usage.c, die().
const exitFatal = 128

// waitForTurn waits until fewer than the allowed number of fetches run.
func (s *Store) waitForTurn(ctx context.Context) (release func(), err error) {
	patience := time.NewTimer(fetchWait)
	defer patience.Stop()
	select {
	case s.fetches <- struct{}{}:
		return func() { <-s.fetches }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-patience.C:
		return nil, fmt.Errorf("%d fetches are running, and none ended within %s: %w", cap(s.fetches), fetchWait, registry.ErrUnavailable)
	}
}

// maxDrain is how much of a request is read that git does not want any more, so that the client comes to read
// why.
const maxDrain = 1 << 30

// feed copies in to the standard input of a git program and closes it. It returns the error of in.
func feed(stdin io.WriteCloser, in io.Reader) error {
	buf := getCopyBuffer()
	defer putCopyBuffer(buf)
	for {
		n, err := in.Read(*buf)
		if n > 0 {
			if _, err := stdin.Write((*buf)[:n]); err != nil {
				_ = stdin.Close()
				_, err := io.CopyBuffer(io.Discard, io.LimitReader(in, maxDrain), *buf)
				return err
			}
		}
		if err != nil {
			_ = stdin.Close()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// copyBufferSize is what a pipe holds.
const copyBufferSize = 64 << 10

var copyBuffers = sync.Pool{New: func() any {
	b := make([]byte, copyBufferSize)
	return &b
}}

func getCopyBuffer() *[]byte { return copyBuffers.Get().(*[]byte) }

func putCopyBuffer(b *[]byte) { copyBuffers.Put(b) }

// ReceivePack is one push.
type ReceivePack struct {
	Repository  *Repository
	GitProtocol string // the header
	// PushID names the push in logs and in what the user reads.
	PushID string
	In     io.Reader // the request, to its end; fails once the client is gone
	Out    io.Writer // is flushed after each write if it has a Flush method
	Stop   func()    // as that of [UploadPack]

	// Check decides about the push before any ref moves. Its error refuses the whole push: the lines of a
	// [Refusal] are shown to the user, any other error is logged and the user reads that there was
	// one. Its context ends when the client is gone, which refuses the push too.
	Check func(ctx context.Context, push *Push) error
	// Finish is called when refs moved, even if the client is gone: it has to make them durable and known. Only
	// then is the client told that they moved. The lines are shown to the user. After an error the
	// client is told that the push could not be recorded, although the refs stay where they are. Its context
	// does not end with that of the push, only when Close kills what is left.
	Finish func(ctx context.Context, updates []registry.RefUpdate) (lines []string, err error)
}

// ReceivePack serves one push. It may write before it has read all. A refused push is no error: the
// client was told. A client that disconnects while it sends, or in Check, fails its push; later it does not.
func (s *Store) ReceivePack(ctx context.Context, req ReceivePack) error {
	ctx, done, err := s.begin(ctx, open)
	if err != nil {
		return err
	}
	defer done()
	end, err := s.beginPush(req.Repository)
	if err != nil {
		return err
	}
	defer end()
	head, err := readPushHead(req.In)
	if err != nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(req.In, maxDrain)) // the client reads nothing before it has sent all
		return fmt.Errorf("read a push to %s: %w", req.Repository.name, err)
	}
	in := io.MultiReader(bytes.NewReader(head), req.In)
	defer func() {
		if err := s.removeRemains(req.Repository); err != nil {
			s.log.Error("remove what a push left of a removed repository", "model", req.Repository.name, "err", err)
		}
	}()
	defer s.share(req.Repository)()
	if err := s.hooks.ready(); err != nil {
		return err
	}
	push := s.hooks.expect(req.PushID, req.Repository, func(hookCtx context.Context, push *Push) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(hookCtx, cancel)()
		return req.Check(ctx, push)
	})
	defer s.hooks.forget(push)

	// Git fails by itself while it reads, and must not be stopped between two refs.
	life, cancel := s.untilKilled(context.WithoutCancel(ctx))
	defer cancel()
	cmd := s.command(life, req.Repository.path, ReceivePackService.args("--stateless-rpc", req.Repository.path)...)
	env, _ := ReceivePackService.protocol(req.GitProtocol)
	cmd.Env = append(append(cmd.Env, env), s.hooks.environment(push)...)
	cmd.holdLock(s)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.start(); err != nil {
		return err
	}
	var feeding sync.WaitGroup
	var inErr error
	feeding.Go(func() { inErr = feed(stdin, in) })

	r := receiving{store: s, req: req, push: push, client: client{w: req.Out}}
	err = r.answer(life, cmd, out)
	if req.Stop != nil {
		req.Stop()
	}
	feeding.Wait()
	if inErr != nil {
		return fmt.Errorf("read a push to %s: %w", req.Repository.name, inErr)
	}
	return err
}

// maxPushHead bounds what a push says before its pack, in bytes: git holds it in memory, and so do we.
const maxPushHead = 16 << 20

// readPushHead reads what a push wants: a list of commands up to a flush and, where the client says that they follow,
// a list of options up to another. What is not understood is left to git. The error is of the reader, or says
// what is refused: more than fits, a name of a ref that would be two lines for the hook, and a signed push, of which git
// would keep the certificate whatever became of it.
// Source: gitprotocol-pack(5), "Reference Update Request and Packfile Transfer".
func readPushHead(in io.Reader) (head []byte, err error) {
	buf := make([]byte, maxPacket)
	commands, options := true, false
	for {
		p, err := readPacket(in, buf)
		switch {
		case errors.Is(err, errPacket), errors.Is(err, io.EOF):
			return nil, registry.Invalid("", "the request is not a push that Git understands")
		case err != nil:
			return nil, err
		case len(head)+len(p) > maxPushHead:
			return nil, fmt.Errorf("what a push says before its pack is at most %d bytes long: %w", maxPushHead, registry.ErrTooLarge)
		}
		head = append(head, p...)
		if p.flush() {
			if !options {
				return head, nil
			}
			commands, options = false, false
			continue
		}
		line, capabilities, _ := strings.Cut(string(p.payload()), "\x00")
		line = strings.TrimSuffix(line, "\n")
		if commands {
			if line == "push-cert" {
				return nil, registry.Invalid("", "this server takes no signed pushes")
			}
			// Git takes them from every line but those that begin with "shallow ".
			options = options || !strings.HasPrefix(line, "shallow ") && hasCapability(capabilities, "push-options")
		}
		if strings.Contains(line, "\n") {
			return nil, registry.Invalid("", "a ref or an option of a push is one line, not %.100q", line)
		}
	}
}

// hasCapability reports whether a list of capabilities has one, perhaps with a value.
func hasCapability(list, name string) bool {
	return slices.ContainsFunc(strings.Fields(list), func(word string) bool {
		key, _, _ := strings.Cut(word, "=")
		return key == name
	})
}

// receiving is a push whose receive-pack runs.
type receiving struct {
	store  *Store
	req    ReceivePack
	push   *pendingPush
	client client
	held   pushAnswer
}

// answer passes on what git says, and its status report once the push is finished.
func (r *receiving) answer(ctx context.Context, cmd *process, out io.ReadCloser) error {
	name := r.req.Repository.name
	readErr := r.forward(out)
	if readErr != nil {
		// Git must not block on us: refs may be moving.
		_, _ = io.Copy(io.Discard, out)
	}
	gitErr := cmd.wait()
	if !r.push.accepted.Load() {
		r.explain()
		r.client.send(r.held.held)
		switch {
		case readErr != nil:
			return fmt.Errorf("push to %s: %w", name, readErr)
		case gitErr != nil && !r.held.any && ctx.Err() == nil:
			r.store.log.Debug("git takes a request for no push", "model", name, "push", r.req.PushID, "err", gitErr)
			return registry.Invalid("", "the request is not a push that Git understands")
		case gitErr != nil:
			return fmt.Errorf("push to %s: %w", name, gitErr)
		}
		return r.answered()
	}

	report, reportErr := parseReport(r.held.report)
	moved := report.moved(r.push.updates)
	if err := errors.Join(readErr, gitErr, reportErr); err != nil {
		// A client that asked for no report ends here, and a git that was killed.
		var err2 error
		if moved, err2 = r.visible(ctx); err2 != nil {
			// Better too much than too little: Finish looks for itself.
			moved = r.push.updates
		}
		r.store.log.Warn("git did not say which refs a push moved", "model", name, "push", r.req.PushID, "err", errors.Join(err, err2))
	}
	if len(moved) > 0 {
		if err := r.req.Repository.writeWhole(r.push.whole); err != nil {
			r.store.log.Warn("the pack of a push is not noted", "model", name, "push", r.req.PushID, "reason", err.Error())
		}
		lines, err := r.finish(ctx, moved)
		if err != nil {
			r.store.log.Error("finish a push whose refs moved", "model", name, "push", r.req.PushID, "err", err)
			r.fail(report, err)
			return r.answered()
		}
		if r.held.bands && len(lines) > 0 {
			r.client.send(appendBand(nil, bandProgress, []byte(lineText(lines))))
		}
	}
	r.client.send(r.held.held)
	return r.answered()
}

// explain tells the user why git could not take the pack, when that is the disk. Git itself often says only what it
// could not do.
func (r *receiving) explain() {
	report, err := parseReport(r.held.report)
	if err != nil || report.unpack == "ok" || !r.held.bands {
		return
	}
	if why := trouble(r.store.tryDisk()); why != "" {
		r.store.log.Error("a push cannot be stored", "model", r.req.Repository.name, "push", r.req.PushID, "reason", why)
		r.client.send(appendBand(nil, bandProgress, []byte("herdbook: "+why+"\n")))
	}
}

// tryBytes is more than what is left when a disk is called full.
const tryBytes = 64 << 10

// tryDisk writes a little beside the repositories and returns what is in the way.
func (s *Store) tryDisk() error {
	f, err := s.fsys.CreateTemp(s.dir, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, tryBytes))
	return errors.Join(err, f.Close(), s.fsys.Remove(f.Name()))
}

// trouble is what users may know of an error of the machine, for one line; empty of any other error.
func trouble(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "the server has no space left for new content; reading still works"
	case errors.Is(err, syscall.EROFS):
		return "the server cannot write to its disk now; reading still works"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, registry.ErrUnavailable):
		return "the server cannot do this now; try again later"
	}
	return ""
}

// answered is nil if the client got all that was sent to it.
func (r *receiving) answered() error {
	if r.client.err != nil {
		return fmt.Errorf("answer a push to %s: %w", r.req.Repository.name, r.client.err)
	}
	return nil
}

// forward reads all that git writes, and sends at once what the client is to see at once.
func (r *receiving) forward(out io.Reader) error {
	buf := make([]byte, maxPacket)
	in := bufio.NewReaderSize(out, 8<<10)
	for {
		p, err := readPacket(in, buf)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		now, err := r.held.take(p)
		if err != nil {
			return err
		}
		r.client.send(r.store.withoutPath(now))
	}
}

// withoutPath leaves out of what git says where the repositories are.
func (s *Store) withoutPath(p packet) packet {
	dir := []byte(s.dir + string(os.PathSeparator))
	if !bytes.Contains(p, dir) {
		return p
	}
	return appendPacket(nil, bytes.ReplaceAll(p.payload(), dir, nil))
}

// finish calls Finish, and keeps the client waiting meanwhile.
func (r *receiving) finish(ctx context.Context, moved []registry.RefUpdate) (lines []string, err error) {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		err = guard(func() (err error) {
			lines, err = r.req.Finish(ctx, moved)
			return err
		})
	}()
	ticks := time.NewTicker(r.store.keepAlive)
	defer ticks.Stop()
	for {
		select {
		case <-finished:
			return lines, err
		case <-ticks.C:
			if r.held.bands {
				r.client.send(keepAlivePacket)
			}
		}
	}
}

// fail tells the client that its push is not recorded, instead of the report that says it went well.
func (r *receiving) fail(report pushReport, why error) {
	text := fmt.Sprintf("herdbook: the push was received but could not be recorded (push %s); push again", r.req.PushID)
	if what := trouble(why); what != "" {
		text += ": " + what
	}
	if !r.held.bands {
		r.client.send(report.failedReport(text))
		return
	}
	r.client.send(append(appendBand(nil, bandError, []byte(text+"\n")), flushPacket...))
}

// visible are those updates of the push that the refs show now.
func (r *receiving) visible(ctx context.Context) ([]registry.RefUpdate, error) {
	refs, err := r.req.Repository.Refs(ctx)
	if err != nil {
		return nil, err
	}
	now := map[string]registry.ObjectID{}
	for _, ref := range refs {
		now[ref.Name] = ref.ID
	}
	return slices.DeleteFunc(slices.Clone(r.push.updates), func(u registry.RefUpdate) bool {
		return now[u.Ref] != u.New
	}), nil
}

// lineText is lines as they are sent to a terminal.
func lineText(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(hook.Printable(line))
		b.WriteByte('\n')
	}
	return b.String()
}
