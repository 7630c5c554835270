//go:build !linux

package blob

func adviseHuge([]byte) {}
