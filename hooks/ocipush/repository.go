package ocipush

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/herdbook/herdbook/registry"
)

// Credentials are the user and the password for a registry; the zero value is nobody.
type Credentials struct{ find auth.CredentialFunc }

// Password is that of a user at the registry of one repository, and is told to no other host.
func Password(repository, user, password string) (Credentials, error) {
	ref, err := remote.NewRepository(repository)
	if err != nil {
		return Credentials{}, fmt.Errorf("%q is not of the form REGISTRY/NAME", repository)
	}
	return Credentials{auth.StaticCredential(ref.Reference.Host(), auth.Credential{Username: user, Password: password})}, nil
}

// DockerConfig takes credentials from a configuration file of Docker's and the programs that it names; without a path from
// that of the user.
func DockerConfig(path string) (Credentials, error) {
	open := func(o credentials.StoreOptions) (*credentials.DynamicStore, error) {
		return credentials.NewStore(path, o)
	}
	if path == "" {
		open = credentials.NewStoreFromDocker
	}
	store, err := open(credentials.StoreOptions{})
	if err != nil {
		return Credentials{}, fmt.Errorf("docker configuration: %w", err)
	}
	return Credentials{credentials.Credential(store)}, nil
}

// Config says how to talk to a registry.
type Config struct {
	PlainHTTP   bool // no TLS
	Credentials Credentials
	UserAgent   string
	Transport   http.RoundTripper // http.DefaultTransport by default

	Tries      int           // of a request, and of the upload of a blob; 6 by default
	FirstDelay time.Duration // before the second try, then twice as long each time; 1 s by default
	MaxDelay   time.Duration // between two tries, also when the registry asks for more; 1 min by default
}

// Repository is one of another registry, or of this one as its clients see it. It implements [Source].
type Repository struct {
	Config
	remote *remote.Repository
}

var _ Source = (*Repository)(nil)

// NewRepository makes a client of REGISTRY/NAME.
func NewRepository(name string, c Config) (*Repository, error) {
	to, err := remote.NewRepository(name)
	if err != nil || to.Reference.Reference != "" {
		return nil, fmt.Errorf("%q is not of the form REGISTRY/NAME, such as registry.example.org/team/model", name)
	}
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	if c.Tries == 0 {
		c.Tries = 6
	}
	if c.FirstDelay == 0 {
		c.FirstDelay = time.Second
	}
	if c.MaxDelay == 0 {
		c.MaxDelay = time.Minute
	}
	r := &Repository{c, to}
	client := &auth.Client{
		Client:     &http.Client{Transport: &retry.Transport{Base: patient{r}, Policy: func() retry.Policy { return r }}},
		Cache:      auth.NewCache(),
		Credential: c.Credentials.find,
	}
	client.SetUserAgent(c.UserAgent)
	to.Client, to.PlainHTTP = client, c.PlainHTTP
	// A list of referrers that is kept under a tag is written anew for each; most registries do not let clients delete the one before.
	to.SkipReferrersGC = true
	return r, nil
}

// Name is REGISTRY/NAME.
func (r *Repository) Name() string { return r.remote.Reference.String() }

// Host is that of the registry.
func (r *Repository) Host() string { return r.remote.Reference.Registry }

// Resolve implements Source.
func (r *Repository) Resolve(ctx context.Context, tag string) (v1.Descriptor, error) {
	d, err := r.remote.Resolve(ctx, tag)
	if errors.Is(err, errdef.ErrNotFound) {
		err = registry.ErrNotFound
	}
	return d, r.fault("tag "+tag, err)
}

// Open implements Source.
func (r *Repository) Open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	content, err := r.remote.Fetch(ctx, d)
	return content, r.fault(what(d), err)
}

// Referrers implements Source.
func (r *Repository) Referrers(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
	found, err := r.remote.Predecessors(ctx, d)
	return found, r.fault("referrers of "+d.Digest.String(), err)
}

// Tag gives a manifest that is in the repository a tag. One that is fixed is not taken from another manifest.
func (r *Repository) Tag(ctx context.Context, d v1.Descriptor, tag string, fixed bool) error {
	switch there, err := r.remote.Resolve(ctx, tag); {
	case err == nil && there.Digest == d.Digest:
		return nil // some registries refuse to set a tag again, even to the same
	case err == nil && fixed:
		return r.fault("tag "+tag, fmt.Errorf("it names %s there, not %s, and the tag of a version does not move; delete it there or push to another repository", there.Digest, d.Digest))
	case err != nil && !errors.Is(err, errdef.ErrNotFound):
		return r.fault("tag "+tag, err)
	}
	return r.fault("tag "+tag, r.remote.Tag(ctx, d, tag))
}

// Fault is why something could not be done at a registry. It tells no address, which may hold a secret.
type Fault struct {
	Repository string // REGISTRY/NAME
	What       string // such as "blob sha256:..."
	Status     int    // of the answer; 0 without one
	Err        error
}

func (r *Repository) fault(what string, err error) error {
	var before *Fault
	if err == nil {
		return nil
	}
	if errors.As(err, &before) {
		return before // of the other side
	}
	f := &Fault{Repository: r.Name(), What: what, Err: err}
	var answer *errcode.ErrorResponse
	switch {
	case errors.As(err, &answer):
		f.Status = answer.StatusCode
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		f.Status = http.StatusUnauthorized
	}
	return f
}

// checkTag says why something cannot be a tag, or nil.
func (r *Repository) checkTag(tag string) error {
	ref := r.remote.Reference
	ref.Reference = tag
	if ref.ValidateReferenceAsTag() != nil {
		return fmt.Errorf("%.130q is no tag: at most 128 letters, digits, '_', '.' and '-', and neither '.' nor '-' first", tag)
	}
	return nil
}

func (f *Fault) Error() string { return fmt.Sprintf("%s: %s: %s", f.Repository, f.What, f.reason()) }

func (f *Fault) Unwrap() error { return f.Err }

func (f *Fault) reason() string {
	var answer *errcode.ErrorResponse
	var sent *url.Error
	switch {
	case errors.As(f.Err, &answer) && len(answer.Errors) > 0:
		return fmt.Sprintf("the registry answered %d %s: %.300s", answer.StatusCode, http.StatusText(answer.StatusCode), answer.Errors)
	case errors.As(f.Err, &answer):
		return fmt.Sprintf("the registry answered %d %s", answer.StatusCode, http.StatusText(answer.StatusCode))
	case errors.Is(f.Err, auth.ErrBasicCredentialNotFound):
		return "the registry wants a user and a password, and there are none for it"
	case errors.Is(f.Err, http.ErrSchemeMismatch):
		return "the registry speaks plain HTTP, without TLS"
	case errors.As(f.Err, &sent):
		return sent.Err.Error()
	}
	return f.Err.Error()
}

// patient waits as long as the registry asks for after it refused a body that cannot be sent again: whoever sends it
// anew does not see the header.
type patient struct{ *Repository }

func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := p.Transport.RoundTrip(r)
	if err == nil && r.Body != nil && r.GetBody == nil {
		if err := wait(r.Context(), min(retryAfter(answer, time.Now()), p.MaxDelay)); err != nil {
			answer.Body.Close()
			return nil, err
		}
	}
	return answer, err
}

// Retry implements the policy of requests that can be sent again.
func (r *Repository) Retry(attempt int, answer *http.Response, err error) (time.Duration, error) {
	if attempt+1 >= r.Tries || (err != nil && !passing(err)) || (err == nil && !passingStatus(answer.StatusCode)) {
		return -1, nil
	}
	return min(max(r.delay(attempt+1), retryAfter(answer, time.Now())), r.MaxDelay), nil
}

// delay before the try after the n-th: it doubles, and a part of it is left to chance.
func (c Config) delay(n int) time.Duration {
	delay := c.MaxDelay
	if n < 30 {
		delay = min(delay, c.FirstDelay<<(n-1))
	}
	return delay/2 + rand.N(delay/2+1)
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// retryAfter is how long a registry wants to be left alone. Source: RFC 9110, section 10.2.3.
func retryAfter(answer *http.Response, now time.Time) time.Duration {
	if answer == nil || (answer.StatusCode != http.StatusTooManyRequests && answer.StatusCode != http.StatusServiceUnavailable) {
		return 0
	}
	text := answer.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

func passingStatus(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || (status >= 500 && status != http.StatusNotImplemented)
}

// passing reports whether a request without an answer may get one later.
func passing(err error) bool {
	var certificate *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	var name *net.DNSError
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, http.ErrSchemeMismatch) &&
		!errors.As(err, &noTLS) && !errors.As(err, &certificate) && (!errors.As(err, &name) || !name.IsNotFound)
}

// unauthorized reports whether the registry refused a token. One that was given to several transfers may have ended before all of them
// could use it: the next request gets another.
func unauthorized(err error) bool {
	var answer *errcode.ErrorResponse
	return errors.As(err, &answer) && answer.StatusCode == http.StatusUnauthorized
}

// again reports whether a blob that was not taken may be taken in a new upload: the registry could not, it lost the
// upload or has something else in it than it was sent, or the token ended in the middle.
func again(err error) bool {
	var answer *errcode.ErrorResponse
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusConflict, http.StatusRequestedRangeNotSatisfiable:
			return answer.Method == http.MethodPut
		}
		return passingStatus(answer.StatusCode)
	}
	var sent *url.Error
	return errors.As(err, &sent) && passing(err)
}
