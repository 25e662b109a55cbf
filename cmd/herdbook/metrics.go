package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/herdbook/herdbook/storage"
)

// counters are what is counted beside requests.
type counters struct{ pushes *prometheus.CounterVec }

func (c counters) pushed(outcome string) { c.pushes.WithLabelValues(outcome).Inc() }

func newCounters(r *prometheus.Registry, data *storage.Data) counters {
	c := counters{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "herdbook_git_pushes_total", Help: "Pushes by what came of them: accepted, refused or failed.",
	}, []string{"outcome"})}
	for _, outcome := range []string{"accepted", "refused", "failed"} {
		c.pushes.WithLabelValues(outcome)
	}
	r.MustRegister(c.pushes, &stateCollector{data})
	return c
}

// stateCollector asks the data directory when it is scraped.
type stateCollector struct{ data *storage.Data }

var (
	descModels      = prometheus.NewDesc("herdbook_models", "Models.", nil, nil)
	descVersions    = prometheus.NewDesc("herdbook_versions", "Published versions.", nil, nil)
	descVerdicts    = prometheus.NewDesc("herdbook_gate_verdicts_total", "Gate verdicts that were announced, by outcome.", []string{"outcome"}, nil)
	descEvaluations = prometheus.NewDesc("herdbook_evaluations", "Evaluations.", nil, nil)
	descDepth       = prometheus.NewDesc("herdbook_outbox_events", "Deliveries that wait in the outbox.", nil, nil)
	descAge         = prometheus.NewDesc("herdbook_outbox_oldest_age_seconds", "Age of the oldest event that waits in the outbox; 0 when none does.", nil, nil)
	descBlobs       = prometheus.NewDesc("herdbook_blobs", "Blobs in the store.", nil, nil)
	descLogical     = prometheus.NewDesc("herdbook_models_size_bytes", "Size of what all models own, as if they shared nothing with each other.", nil, nil)
	descScrubbed    = prometheus.NewDesc("herdbook_scrub_read_bytes_total", "What was read to compare files with their digests.", nil, nil)
	descDamaged     = prometheus.NewDesc("herdbook_blobs_damaged_total", "Files that were found damaged and set aside.", nil, nil)
	descBytes       = prometheus.NewDesc("herdbook_blobs_size_bytes", "Size of the blobs in the store.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descModels, descVersions, descVerdicts, descEvaluations, descDepth, descAge, descBlobs, descLogical, descBytes, descScrubbed, descDamaged} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What cannot be read is reported as that, not as 0.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counts, err := c.data.Index.Counts(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descModels, err)
		return
	}
	gauge(descModels, float64(counts.Models))
	gauge(descVersions, float64(counts.Versions))
	gauge(descEvaluations, float64(counts.Evaluations))
	ch <- prometheus.MustNewConstMetric(descVerdicts, prometheus.CounterValue, float64(counts.GatesOpened), "open")
	ch <- prometheus.MustNewConstMetric(descVerdicts, prometheus.CounterValue, float64(counts.GatesClosed+counts.Refused), "closed")
	gauge(descDepth, float64(counts.Waiting))
	age := 0.0
	if !counts.OldestWaiting.IsZero() {
		age = time.Since(counts.OldestWaiting).Seconds()
	}
	gauge(descAge, age)
	counter := func(d *prometheus.Desc, value int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value))
	}
	counter(descScrubbed, c.data.Scrubbed.Bytes.Load())
	counter(descDamaged, c.data.Scrubbed.Damaged.Load())
	gauge(descLogical, float64(counts.LogicalBytes))
	blobs, bytes, err := c.data.Blobs.Usage(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descBlobs, err)
		return
	}
	gauge(descBlobs, float64(blobs))
	gauge(descBytes, float64(bytes))
}
