package index

import (
	"bytes"
	"sync"

	"github.com/herdbook/herdbook/registry"
)

// memos keep what was decoded of the values that nearly every request reads.
type memos struct {
	models       memo[registry.Model]
	tokens       memo[registry.Token]
	manifests    memo[registry.StoredManifest]
	repositories memo[registry.Repository]
	evaluations  memo[registry.Evaluation]
	versions     memo[registry.VersionRecord]
	policies     memo[registry.PolicyState]
	environments memo[registry.EnvironmentState]
	gates        memo[registry.Verdict]
}

const (
	// maxMemo is how many values of a kind are kept, and maxMemoBytes how long they are at most: what clients push may be long.
	// Models are small, and a walk through lineage asks for those of all that it meets.
	maxMemo      = 2000
	maxModels    = 32_000
	maxMemoBytes = 4 << 10
	// maxKindBytes bounds all values of a kind together. Decoded they take some three times as much.
	maxKindBytes  = 2 << 20
	maxModelBytes = 16 << 20
)

// memo keeps decoded values. A value stands for exactly the bytes that it was decoded from, so that a change of them
// makes it one that is not there. What is in it is shared: who gets it may replace its parts and not change them.
type memo[V any] struct {
	mu    sync.RWMutex
	byKey map[string]decoded[V]
	bytes int // of what the values were decoded from
}

type decoded[V any] struct {
	from  []byte
	value V
}

// recall is [tx.get] of a value that m keeps.
func recall[V any](t tx, m *memo[V], bucket string, k []byte, v *V) (bool, error) {
	value := t.value(bucket, k)
	if value == nil {
		return false, nil
	}
	return true, m.decode(bucket, k, value, v)
}

// decode decodes the value of k into v.
func (m *memo[V]) decode(bucket string, k, value []byte, v *V) error {
	most, mostBytes := maxMemo, maxKindBytes
	if bucket == bucketModels {
		most, mostBytes = maxModels, maxModelBytes
	}
	m.mu.RLock()
	known, ok := m.byKey[string(k)]
	m.mu.RUnlock()
	if ok && bytes.Equal(known.from, value) {
		*v = known.value
		return nil
	}
	var fresh V
	if err := decode(bucket, k, value, &fresh); err != nil {
		return err
	}
	*v = fresh
	if len(value) > maxMemoBytes {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byKey == nil || len(m.byKey) >= most || m.bytes >= mostBytes {
		m.byKey, m.bytes = map[string]decoded[V]{}, 0
	}
	m.bytes += len(value) - len(m.byKey[string(k)].from)
	m.byKey[string(k)] = decoded[V]{bytes.Clone(value), fresh}
	return nil
}
