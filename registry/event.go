package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// EventType names what happened.
type EventType string

// The types of events. A type never changes its meaning.
const (
	EventModelCreated           EventType = "model.created"
	EventModelDeleted           EventType = "model.deleted"
	EventModelVisibilityChanged EventType = "model.visibility_changed"
	EventRefUpdated             EventType = "ref.updated"
	EventPolicyChanged          EventType = "policy.changed"
	EventVersionPublished       EventType = "version.published"
	EventVersionImageReady      EventType = "version.image_ready"
	EventVersionDeprecated      EventType = "version.deprecated"
	EventVersionQuarantined     EventType = "version.quarantined"
	EventVersionRevoked         EventType = "version.revoked"
	EventVersionRestored        EventType = "version.restored"
	EventEvaluationRecorded     EventType = "evaluation.recorded"
	EventGateOpened             EventType = "gate.opened"
	EventGateClosed             EventType = "gate.closed"
	EventEnvironmentApproved    EventType = "environment.approved"
	EventEnvironmentPromoted    EventType = "environment.promoted"
	EventEnvironmentRolledBack  EventType = "environment.rolledback"
	EventEnvironmentFrozen      EventType = "environment.frozen"
	EventEnvironmentUnfrozen    EventType = "environment.unfrozen"
	EventDeploymentLive         EventType = "deployment.live"
)

// EventTypes are all types that a sink may ask for.
var EventTypes = []EventType{
	EventModelCreated, EventModelDeleted, EventModelVisibilityChanged, EventRefUpdated, EventPolicyChanged,
	EventVersionPublished, EventVersionImageReady, EventVersionDeprecated, EventVersionQuarantined, EventVersionRevoked, EventVersionRestored, EventEvaluationRecorded, EventGateOpened, EventGateClosed,
	EventEnvironmentApproved, EventEnvironmentPromoted, EventEnvironmentRolledBack, EventEnvironmentFrozen, EventEnvironmentUnfrozen, EventDeploymentLive,
}

// Event is something that happened to a model. ID is derived from what happened, so that the
// same change found twice is one event. Seq is its place in the order of all events; the index
// assigns it.
type Event struct {
	Seq         uint64          `json:"seq,omitempty"`
	ID          string          `json:"id"`
	Type        EventType       `json:"type"`
	ModelID     string          `json:"model_id"`
	Model       ModelName       `json:"model"`
	Version     Tag             `json:"version,omitzero"`
	Environment EnvironmentName `json:"environment,omitzero"`
	Actor       string          `json:"actor"`
	At          time.Time       `json:"at"`
	Data        json.RawMessage `json:"data,omitempty"`
	Sinks       []string        `json:"sinks,omitempty"`    // the hooks that it is delivered to
	Withheld    bool            `json:"withheld,omitempty"` // who caused it wanted it to be delivered to none
}

// EventID derives the id of an event from what makes it different from all others.
func EventID(modelID string, kind EventType, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{modelID, string(kind)}, parts...), "\x00")))
	return hex.EncodeToString(sum[:16])
}

// NewEvent makes an event of a model. Data is encoded as JSON; it must be a value of this
// program that always encodes.
func NewEvent(kind EventType, m Model, actor string, at time.Time, data any, idParts ...string) Event {
	raw, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("event %s: %v", kind, err)) // a bug: events carry plain data
	}
	return Event{ID: EventID(m.ID, kind, idParts...), Type: kind, ModelID: m.ID, Model: m.Name, Actor: actor, At: at, Data: raw}
}

// Outcome of an attempt to deliver an event to a sink.
type Outcome string

// The outcomes.
const (
	Delivered Outcome = "delivered"
	Failed    Outcome = "failed"  // will be tried again
	Dead      Outcome = "dead"    // was tried for the last time
	Requeued  Outcome = "requeue" // a person asked for another round of tries
)

// Attempt is one try to deliver an event to a sink.
type Attempt struct {
	Sink       string        `json:"sink"`
	EventID    string        `json:"event_id"`
	Number     int           `json:"number"` // 1 is the first
	Outcome    Outcome       `json:"outcome"`
	At         time.Time     `json:"at"`
	Duration   time.Duration `json:"duration_ns"`
	StatusCode int           `json:"status_code,omitempty"`
	Detail     string        `json:"detail,omitempty"` // what went wrong, redacted
	NextAt     time.Time     `json:"next_at,omitzero"` // of a failed one
}

// Delivery is an event on its way to one sink.
type Delivery struct {
	ID       string    `json:"id"` // SINK/EVENT-ID
	Sink     string    `json:"sink"`
	Event    Event     `json:"event"`
	State    Outcome   `json:"state,omitempty"` // empty while it was never tried
	Attempts []Attempt `json:"attempts"`
	NextAt   time.Time `json:"next_at,omitzero"`
}

// DeliveryFilter says which deliveries are asked for; the zero value, all.
type DeliveryFilter struct {
	ModelID string // of events of this model
	Version Tag    // of events that are about this version of it; needs ModelID
	Hook    string // to this hook
}
