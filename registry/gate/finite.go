package gate

import (
	"math"
	"slices"

	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	celref "cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// finite makes arithmetic fail whose result is no number: 1.0/0.0 is infinite and 0.0/0.0 is
// none, and both compare so that a gate opens.
func finite(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || !slices.Contains(arithmetic, call.Function()) {
		return i, nil
	}
	return finiteCall{call}, nil
}

var arithmetic = []string{
	operators.Divide, operators.Multiply, operators.Add, operators.Subtract, operators.Negate, overloads.TypeConvertDouble,
}

type finiteCall struct{ interpreter.InterpretableCall }

// Exec implements [interpreter.InterpretableV2].
func (c finiteCall) Exec(frame *interpreter.ExecutionFrame) celref.Val {
	value := c.InterpretableCall.Exec(frame)
	if d, ok := value.(types.Double); ok && (math.IsInf(float64(d), 0) || math.IsNaN(float64(d))) {
		return types.NewErrWithNodeID(c.ID(), "a division by zero or a number that is too large")
	}
	return value
}

// Eval implements [interpreter.Interpretable].
func (c finiteCall) Eval(vars interpreter.Activation) celref.Val {
	return interpreter.EvalActivation(vars, c.Exec)
}
