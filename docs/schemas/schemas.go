// Package schemas holds the JSON Schemas that Herdbook publishes, as they are served below /api/v1/schemas.
package schemas

import _ "embed" // the schemas

// Explanation is the schema of explanations, version 1.
//
//go:embed explanation-v1.json
var Explanation []byte
