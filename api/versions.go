package api

import (
	"context"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/opencontainers/go-digest"

	"github.com/herdbook/herdbook/api/internal/door"
	"github.com/herdbook/herdbook/registry"
	"github.com/herdbook/herdbook/registry/access"
	"github.com/herdbook/herdbook/registry/lifecycle"
)

// Version is a version as the API shows it.
type Version struct {
	Model       registry.ModelName    `json:"model"`
	Tag         registry.Tag          `json:"tag"`
	Commit      registry.ObjectID     `json:"commit"`
	State       registry.VersionState `json:"state"`
	Changed     *registry.StateChange `json:"state_change,omitempty"` // how it came into its state; absent while it was never in another
	Message     string                `json:"message,omitempty"`
	PublishedAt time.Time             `json:"published_at"`
	PublishedBy string                `json:"published_by"`
	Artifact    Artifact              `json:"artifact"`
	Image       Image                 `json:"image"`
	Metrics     map[string]float64    `json:"metrics,omitempty"` // of the evaluation that speaks for it, see registry.Headline
	Warnings    []string              `json:"warnings,omitempty"`
	URL         string                `json:"url"`

	Intervals map[string]registry.Interval `json:"intervals,omitempty"` // of the metrics

	// Only where one version is asked for.
	Card  *registry.CardFacts `json:"card,omitempty"`
	Files []registry.File     `json:"files,omitempty"`
	Pull  []registry.Pull     `json:"pull,omitempty"` // ways to get it
}

// Artifact is where the files of a version are pulled from.
type Artifact struct {
	Reference string        `json:"reference"` // HOST/NAMESPACE/NAME:TAG
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"media_type"`
}

// Image is where the runnable form of a version is pulled from.
type Image struct {
	Reference string              `json:"reference"`
	State     registry.ImageState `json:"state"`
	Digest    digest.Digest       `json:"digest,omitempty"`
	Error     string              `json:"error,omitempty"`
}

func (s *Server) showVersion(ctx context.Context, m registry.Model, v registry.VersionRecord) (Version, error) {
	e, err := s.Index.Headline(ctx, m.ID, v.Version.Commit)
	if err != nil {
		return Version{}, err
	}
	shown := Version{
		Model: m.Name, Tag: v.Version.Tag, Commit: v.Version.Commit, State: v.State, Changed: v.Changed, Message: v.Version.Message,
		PublishedAt: v.Version.PublishedAt, PublishedBy: v.Version.PublishedBy, Warnings: v.Version.Warnings,
		Artifact: Artifact{s.host() + "/" + m.Name.String() + ":" + v.Version.Tag.String(), v.Version.Artifact.Digest, v.Version.Artifact.MediaType},
		Image:    Image{s.host() + "/" + m.Name.String() + "/image:" + v.Version.Tag.String(), v.Image.State, v.Image.Digest, v.Image.Error},
		URL:      s.page(m.Name.String(), "versions", v.Version.Tag.String()),
	}
	if e != nil {
		shown.Metrics, shown.Intervals = e.Metrics, e.Intervals
	}
	return shown, nil
}

func (s *Server) listVersions(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	versions, err := s.Index.Versions(ctx, m.ID)
	if err != nil {
		return err
	}
	versions, next, err := pageVersions(versions, at)
	if err != nil {
		return err
	}
	items := make([]Version, len(versions))
	for i, v := range versions {
		if items[i], err = s.showVersion(ctx, m, v); err != nil {
			return err
		}
	}
	return answerList(c, items, next)
}

// pageVersions cuts a page out of versions, which are sorted with the highest first. The cursor
// is the tag of the last one given.
func pageVersions(versions []registry.VersionRecord, at registry.Page) ([]registry.VersionRecord, string, error) {
	if at.Cursor != "" {
		last, err := registry.ParseTag(at.Cursor)
		if err != nil {
			return nil, "", registry.Invalid("cursor", "the cursor is not one that this server gave")
		}
		for len(versions) > 0 && versions[0].Version.Tag.Compare(last) >= 0 {
			versions = versions[1:]
		}
	}
	if len(versions) <= at.Bound() {
		return versions, "", nil
	}
	versions = versions[:at.Bound()]
	return versions, versions[len(versions)-1].Version.Tag.String(), nil
}

func (s *Server) getVersion(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Param("tag"))
	if err != nil {
		return err
	}
	v, err := s.Index.Version(c.Request().Context(), m.ID, tag)
	if err != nil {
		return err
	}
	shown, err := s.showVersion(c.Request().Context(), m, v)
	if err != nil {
		return err
	}
	shown.Card, shown.Files = &v.Version.Card, v.Version.Files
	if v.State != registry.Revoked {
		shown.Pull = registry.Pulls(s.PublicURL, m.Name, v)
	}
	return c.JSON(http.StatusOK, shown)
}

// NewState is what a person says about a version.
type NewState struct {
	State     string `json:"state"` // published, which restores it, deprecated, quarantined or revoked
	Reason    string `json:"reason"`
	ForceLive bool   `json:"force_live,omitempty"` // revoke it although it runs somewhere
}

func (s *Server) setState(c echo.Context) error {
	m, err := s.model(c, access.SetState)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Param("tag"))
	if err != nil {
		return err
	}
	var in NewState
	if err := decode(c, maxBodyBytes, &in); err != nil {
		return err
	}
	state, err := registry.ParseVersionState(in.State)
	if err != nil {
		return err
	}
	change, err := s.Lifecycle.SetState(c.Request().Context(), door.Request(c), m, tag, lifecycle.NewState{State: state, Reason: in.Reason, ForceLive: in.ForceLive})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, change)
}

func (s *Server) listStates(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	tag, err := registry.ParseTag(c.Param("tag"))
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if _, err := s.Index.Version(ctx, m.ID, tag); err != nil {
		return err
	}
	changes, err := s.Index.StateHistory(ctx, m.ID, tag)
	if err != nil {
		return err
	}
	if changes == nil {
		changes = []registry.StateChange{}
	}
	return answerList(c, changes, "")
}

// CommitHeader names the commit that "rev" stood for when evaluations were listed.
const CommitHeader = "Herdbook-Commit"

func (s *Server) listEvaluations(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	at, err := pageOf(c)
	if err != nil {
		return err
	}
	commit, err := s.commit(c, m)
	if err != nil {
		return err
	}
	items, next, err := s.Index.EvaluationsPage(c.Request().Context(), m.ID, commit, at)
	if err != nil {
		return err
	}
	for i := range items {
		items[i] = items[i].Brief()
	}
	c.Response().Header().Set(CommitHeader, string(commit))
	return answerList(c, items, next)
}

// Recorded is the answer to an evaluation.
type Recorded struct {
	registry.Evaluation
	Verdicts []VersionVerdict             `json:"verdicts"` // those that the evaluation changed
	Promoted []registry.EnvironmentChange `json:"promoted"` // what the server promoted because of it
}

// VersionVerdict is a verdict and the version that it is about.
type VersionVerdict struct {
	Version registry.Tag `json:"version"`
	registry.Verdict
}

func (s *Server) recordEvaluation(c echo.Context) error {
	m, err := s.model(c, access.Evaluate)
	if err != nil {
		return err
	}
	var in registry.EvaluationInput
	if err := decode(c, maxEvaluationBytes, &in); err != nil {
		return err
	}
	commit, err := s.commit(c, m)
	if err != nil {
		return err
	}
	recorded, err := s.Lifecycle.RecordEvaluation(c.Request().Context(), door.Request(c), m, commit, in)
	if err != nil {
		return err
	}
	answer := Recorded{Evaluation: recorded.Evaluation.Brief(), Verdicts: []VersionVerdict{}, Promoted: recorded.Promoted}
	for _, changed := range recorded.Changed {
		answer.Verdicts = append(answer.Verdicts, VersionVerdict{changed.Version, changed.Verdict})
	}
	if answer.Promoted == nil {
		answer.Promoted = []registry.EnvironmentChange{}
	}
	return c.JSON(http.StatusCreated, answer)
}

// maxEvaluationBytes bounds an evaluation: a matrix of the most labels fits.
const maxEvaluationBytes = 8 << 20

func (s *Server) getGates(c echo.Context) error {
	m, err := s.model(c, access.Read)
	if err != nil {
		return err
	}
	v, err := s.versionAt(c, m)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	switch c.QueryParam("facts") {
	case "", "false":
	case "true":
		env, err := registry.ParseEnvironmentName(c.QueryParam("environment"))
		if err != nil {
			return registry.Invalid("environment", "say which environment's decision: %v", err)
		}
		decision, err := s.Lifecycle.Decision(ctx, door.Request(c), m, v, env)
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, decision)
	default:
		return registry.Invalid("facts", "facts is true or false")
	}
	verdicts, err := s.Lifecycle.Verdicts(ctx, m, v)
	if err != nil {
		return err
	}
	policy, err := s.Index.Policy(ctx, m.ID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, struct {
		Version registry.Tag       `json:"version"`
		Commit  registry.ObjectID  `json:"commit"`
		Items   []registry.Verdict `json:"items"`
		Policy  *Policy            `json:"policy,omitempty"`
	}{v.Version.Tag, v.Version.Commit, verdicts, showPolicy(policy)})
}

func showPolicy(p registry.PolicyState) *Policy {
	if p.Commit == "" {
		return nil
	}
	return &Policy{Commit: p.Commit, Problem: p.Problem}
}

// versionAt is the version that "rev" names: the highest one when several stand at its commit.
func (s *Server) versionAt(c echo.Context, m registry.Model) (registry.VersionRecord, error) {
	text, err := door.Param(c, "rev")
	if err != nil {
		return registry.VersionRecord{}, err
	}
	ctx := c.Request().Context()
	if tag, err := registry.ParseTag(text); err == nil {
		return s.Index.Version(ctx, m.ID, tag)
	}
	commit, err := s.commit(c, m)
	if err != nil {
		return registry.VersionRecord{}, err
	}
	versions, err := s.Index.VersionsAt(ctx, m.ID, commit)
	if err != nil {
		return registry.VersionRecord{}, err
	}
	if len(versions) == 0 {
		return registry.VersionRecord{}, errNoVersionAt(commit)
	}
	return versions[0], nil
}
