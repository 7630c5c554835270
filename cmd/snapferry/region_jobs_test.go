package main

import "testing"

func TestCountsText(t *testing.T) {
	for in, want := range map[string]string{
		``:                                "",
		`{}`:                              "",
		`{"slots":70000,"bytes":5242880}`: "bytes 5.0 MiB, slots 70000",
		`{"state":"odd"}`:                 `{"state":"odd"}`,
		`[1]`:                             `[1]`,
	} {
		if got := countsText([]byte(in)); got != want {
			t.Errorf("%s reads %q, want %q", in, got, want)
		}
	}
}
