// Package mutation tests the tests: a list of faults that would lose data or
// space, each a small edit of the program, and the test that must fail with it.
//
// The lists are in list_test.go and the files beside it. Each edit is checked to fit on every run of the
// tests; with
//
//	make mutations
//
// each is made, in a build overlay that leaves the tree alone, and its test is
// run and must fail.
package mutation
