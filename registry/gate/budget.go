package gate

import "fmt"

// RequestCost bounds the work of all expressions that one request has decided, in the units of costLimit: four of the most expensive
// expressions, which take about a second and a half.
const RequestCost = 4 * costLimit

// evaluationCost is what it costs to give an evaluation to an expression that names all of them.
const evaluationCost = 50

// Budget is what the verdicts of one request may cost together. It depends on expressions and facts alone, and not on the speed of the
// machine, so that the same request has the same verdicts everywhere. It is for one goroutine.
type Budget struct {
	left uint64
	done <-chan struct{}
}

// NewBudget is one of some equal parts of [RequestCost]. No gate is looked at any more when done is closed; nil never is.
func NewBudget(done <-chan struct{}, parts uint64) *Budget {
	return &Budget{left: RequestCost / parts, done: done}
}

// Spent reports whether there were gates for which nothing was left, or may be from now on.
func (b *Budget) Spent() bool { return b.left == 0 }

// closed says why no further gate is looked at, or nothing.
func (b *Budget) closed() string {
	select {
	case <-b.done:
		return "it was not looked at: the request ended before"
	default:
	}
	if b.Spent() {
		return fmt.Sprintf("it was not looked at: the gates before it used up the cost of %d that one request may have; make them cheaper, or ask for one version at a time", RequestCost)
	}
	return ""
}

func (b *Budget) spend(cost uint64) { b.left -= min(cost, b.left) }
