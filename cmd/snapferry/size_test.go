package main

import (
	"testing"

	"github.com/snapferry/snapferry"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "512": 512, "512B": -1, "1K": 1 << 10, "20G": 20 << 30, "20GiB": 20 << 30, "20GB": 20 << 30, "20Gi": 20 << 30, "1.5T": 3 << 39, "64T": 64 << 40,
		"0.5K": 512, "1.5": -1, "0.0001K": -1, "": -1, "G": -1, "-1G": -1, "+1": -1, "1e3": -1, "1_0": -1, "0x10": -1, "10 G": -1, "20g": -1, "iB": -1, "B": -1,
		"9223372036854775807": 1<<63 - 1, "9223372036854775808": -1, "8388608T": -1, "Inf": -1, "NaN": -1, "1..5G": -1,
	} {
		got, err := parseSize(s)
		if want < 0 {
			if !snapferry.IsKind(err, snapferry.Invalid) || snapferry.HintOf(err) == "" {
				t.Errorf("%q: got %d, %v, want Invalid", s, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
}
