// Package schemas holds the JSON Schemas that Herdbook publishes, as they are served below /api/v1/schemas.
package schemas

import _ "embed" // the schemas

// Explanation is the schema of explanations, version 1.
//
//go:embed explanation-v1.json
var Explanation []byte

// Policy is the schema of herdbook.yaml, version 1. What registry/card takes it takes; it does not know CEL, nor that "after" names an
// environment that stands above.
//
//go:embed policy-v1.json
var Policy []byte
