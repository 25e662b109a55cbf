package gate

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"
	celref "cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// ordered adapts Go values to CEL, so that macros go through a map in the order of its keys. With
// Go's order a verdict and its reason would differ from one decision to the next:
// metrics.map(m, m)[0] == "f1".
type ordered struct{}

// NativeToValue implements [types.Adapter].
func (a ordered) NativeToValue(value any) celref.Val {
	switch v := value.(type) {
	case map[string]any:
		return orderedMap{types.NewStringInterfaceMap(a, v)}
	case map[string]float64:
		return orderedMap{types.NewDynamicMap(a, v)}
	case []any:
		return types.NewDynamicList(a, v)
	}
	return types.DefaultTypeAdapter.NativeToValue(value)
}

// orderedLiterals orders the maps that are written out in an expression: {'b': 1, 'a': 2}.
func orderedLiterals(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	switch v := i.(type) {
	case interpreter.InterpretableConst:
		if m, ok := v.Value().(traits.Mapper); ok {
			return interpreter.NewConstValue(i.ID(), orderedMap{m}), nil
		}
	case interpreter.InterpretableConstructor:
		if v.Type() == types.MapType {
			return orderedLiteral{v}, nil
		}
	}
	return i, nil
}

type orderedLiteral struct{ interpreter.InterpretableV2 }

// Exec implements [interpreter.InterpretableV2].
func (l orderedLiteral) Exec(frame *interpreter.ExecutionFrame) celref.Val {
	value := l.InterpretableV2.Exec(frame)
	if m, ok := value.(traits.Mapper); ok {
		return orderedMap{m}
	}
	return value
}

// Eval implements [interpreter.Interpretable].
func (l orderedLiteral) Eval(vars interpreter.Activation) celref.Val {
	return interpreter.EvalActivation(vars, l.Exec)
}

type orderedMap struct{ traits.Mapper }

// Iterator implements [traits.Iterable].
func (m orderedMap) Iterator() traits.Iterator {
	var keys []celref.Val
	for it := m.Mapper.Iterator(); it.HasNext() == types.True; {
		keys = append(keys, it.Next())
	}
	text := func(key celref.Val) string { return fmt.Sprint(key.Type(), " ", key.Value()) }
	slices.SortFunc(keys, func(x, y celref.Val) int { return strings.Compare(text(x), text(y)) })
	return types.NewRefValList(ordered{}, keys).Iterator()
}

// AggregateSize implements [types.AggregateSizeVisitor]: the order costs nothing there.
func (m orderedMap) AggregateSize(sizer types.AggregateSizer) uint32 {
	return sizer.AggregateSize(m.Mapper)
}

var (
	_ types.Adapter              = ordered{}
	_ types.AggregateSizeVisitor = orderedMap{}
)
