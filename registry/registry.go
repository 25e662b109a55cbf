// Package registry holds the terms and the rules of a model registry: what a model, a
// version, an evaluation, an environment and an edge of lineage are, and what makes each
// of them valid.
//
// It does no input or output and reads no clock: facts come in as arguments, a value or an
// error goes out. Values that come from outside are parsed once into a type that cannot be
// wrong ([ModelName], [Tag], [EnvironmentName], [ObjectID], [Rev]) and passed on as that.
package registry
