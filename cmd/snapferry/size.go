package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/snapferry/snapferry"
)

// sizeUnits are the units of sizes on the command line: powers of 1,024.
const sizeUnits = "KMGT"

// parseSize reads a number of bytes, as 512, 20G, 20GiB or 1.5T.
func parseSize(s string) (int64, error) {
	bad := func() (int64, error) {
		return 0, snapferry.Errorf(snapferry.Invalid, "%q is not a number of bytes", s).WithHint("write it like 20G or 1.5T: K, M, G and T are powers of 1024")
	}
	number, unit := strings.TrimSuffix(strings.TrimSuffix(s, "B"), "i"), float64(1)
	if number == "" || number != s && !strings.ContainsAny(number[len(number)-1:], sizeUnits) {
		return bad()
	}
	if i := strings.IndexByte(sizeUnits, number[len(number)-1]); i >= 0 {
		number, unit = number[:len(number)-1], math.Exp2(10*float64(i+1))
	}
	if strings.Trim(number, "0123456789.") != "" {
		return bad()
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil && n <= math.MaxInt64/int64(unit) {
		return n * int64(unit), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if f *= unit; err != nil || f >= math.MaxInt64 || f != math.Trunc(f) {
		return bad()
	}
	return int64(f), nil
}
