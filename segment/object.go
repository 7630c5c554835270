package segment

import (
	"encoding/binary"

	"github.com/snapferry/snapferry"
)

const (
	// ObjectHeaderSize is the length of an object's header in bytes; the first
	// body begins there.
	ObjectHeaderSize = 16
	// DirEntrySize is the length of one entry of a directory in bytes.
	DirEntrySize = 40
	// DirTrailerSize is the length of the last part of an object in bytes. It
	// says how long the directory is.
	DirTrailerSize = 24
	// MaxBodies is the largest number of bodies in an object.
	MaxBodies = 1 << 16

	objectVersion = 1
	magicObject   = "SFOBJ"
	magicDir      = "SFD"
)

// DirEntry says where in an object the body of a segment is.
type DirEntry struct {
	Segment    snapferry.SegmentID
	Generation uint32 // how often the segment was rewritten by compaction
	Offset     int64  // from the start of the object, in bytes
	Length     int64  // of the body, in bytes
	CRC        uint32 // CRC-32C of the body
}

// AppendObjectHeader appends the header of an object to dst.
func AppendObjectHeader(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, magicObject...)
	dst = append(dst, objectVersion, 0, 0, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, Checksum(dst[start:]))
}

func checkObjectHeader(p []byte) error {
	if len(p) < ObjectHeaderSize || string(p[:5]) != magicObject {
		return corrupt("object header: no magic")
	}
	if err := checkVersion("object header", p[5]); err != nil {
		return err
	}
	if Checksum(p[:12]) != binary.BigEndian.Uint32(p[12:]) {
		return corrupt("object header: wrong checksum")
	}
	if p[6]|p[7]|p[8]|p[9]|p[10]|p[11] != 0 {
		return corrupt("object header: reserved bytes are set")
	}
	return nil
}

// AppendDirectory appends the directory and so ends an object. The entries
// must be those of its bodies in the order of their offsets: at least one, at
// most MaxBodies, the first at ObjectHeaderSize, each where the one before it
// ends, no segment twice.
func AppendDirectory(dst []byte, entries []DirEntry) []byte {
	start := len(dst)
	offset := int64(ObjectHeaderSize)
	for i := range entries {
		e := &entries[i]
		dst = append(dst, e.Segment[:]...)
		dst = binary.BigEndian.AppendUint32(dst, e.Generation)
		dst = binary.BigEndian.AppendUint64(dst, uint64(e.Offset))
		dst = binary.BigEndian.AppendUint64(dst, uint64(e.Length))
		dst = binary.BigEndian.AppendUint32(dst, e.CRC)
		offset = e.Offset + e.Length
	}
	crc := Checksum(dst[start:])
	start = len(dst)
	dst = binary.BigEndian.AppendUint64(dst, uint64(offset))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(entries)))
	dst = binary.BigEndian.AppendUint32(dst, crc)
	dst = append(dst, 0, 0, 0, 0, objectVersion)
	dst = append(dst, magicDir...)
	p := dst[start:]
	binary.BigEndian.PutUint32(p[16:], dirTrailerCRC(p))
	return dst
}

// dirTrailerCRC is over a directory's trailer without its checksum.
func dirTrailerCRC(p []byte) uint32 {
	var b [DirTrailerSize - 4]byte
	copy(b[:16], p[:16])
	copy(b[16:], p[20:])
	return Checksum(b[:])
}

type dirTrailer struct {
	offset uint64
	count  int
	crc    uint32
}

func decodeDirTrailer(tail []byte) (dirTrailer, error) {
	if len(tail) < DirTrailerSize {
		return dirTrailer{}, corrupt("directory trailer: %d bytes are too few", len(tail))
	}
	p := tail[len(tail)-DirTrailerSize:]
	if string(p[21:]) != magicDir {
		return dirTrailer{}, corrupt("directory trailer: no magic")
	}
	if err := checkVersion("directory trailer", p[20]); err != nil {
		return dirTrailer{}, err
	}
	if dirTrailerCRC(p) != binary.BigEndian.Uint32(p[16:]) {
		return dirTrailer{}, corrupt("directory trailer: wrong checksum")
	}
	count := binary.BigEndian.Uint32(p[8:])
	if count < 1 || count > MaxBodies {
		return dirTrailer{}, corrupt("directory trailer: %d bodies", count)
	}
	return dirTrailer{offset: binary.BigEndian.Uint64(p), count: int(count), crc: binary.BigEndian.Uint32(p[12:])}, nil
}

// DirectorySpan returns how many bytes at the end of an object DecodeDirectory
// needs, at most MaxBodies*DirEntrySize + DirTrailerSize, given at least its
// last DirTrailerSize bytes. The error is of Kind Unsupported for a newer
// version, else Corrupt.
func DirectorySpan(trailer []byte) (n int, err error) {
	t, err := decodeDirTrailer(trailer)
	if err != nil {
		return 0, err
	}
	return t.count*DirEntrySize + DirTrailerSize, nil
}

// DecodeDirectory reads the directory at the end of tail, the last
// DirectorySpan bytes or more of an object of objectSize bytes. The bodies
// fill the object from its header to the directory without gaps. The error is
// of Kind Unsupported for a newer version, else Corrupt.
func DecodeDirectory(tail []byte, objectSize int64) ([]DirEntry, error) {
	t, err := decodeDirTrailer(tail)
	if err != nil {
		return nil, err
	}
	n := t.count*DirEntrySize + DirTrailerSize
	if len(tail) < n {
		return nil, corrupt("directory: it has %d bytes, here are %d", n, len(tail))
	}
	if objectSize < int64(n) || t.offset != uint64(objectSize-int64(n)) {
		return nil, corrupt("directory: it is not at the end of the object")
	}
	p := tail[len(tail)-n : len(tail)-DirTrailerSize]
	if Checksum(p) != t.crc {
		return nil, corrupt("directory: wrong checksum")
	}
	entries := make([]DirEntry, t.count)
	seen := make(map[snapferry.SegmentID]struct{}, t.count)
	offset := int64(ObjectHeaderSize)
	for i := range entries {
		e := decodeDirEntry(p[i*DirEntrySize:])
		if e.Offset != offset || e.Length < minBody || e.Length > MaxBody {
			return nil, corrupt("directory: segment %s is not where the one before it ends", e.Segment)
		}
		if _, twice := seen[e.Segment]; twice || e.Segment.IsZero() {
			return nil, corrupt("directory: segment %s twice or zero", e.Segment)
		}
		seen[e.Segment] = struct{}{}
		offset += e.Length
		entries[i] = e
	}
	if uint64(offset) != t.offset {
		return nil, corrupt("directory: the bodies do not end at the directory")
	}
	return entries, nil
}

func decodeDirEntry(p []byte) DirEntry {
	return DirEntry{
		Segment:    snapferry.SegmentID(p[:16]),
		Generation: binary.BigEndian.Uint32(p[16:]),
		Offset:     int64(binary.BigEndian.Uint64(p[20:])),
		Length:     int64(binary.BigEndian.Uint64(p[28:])),
		CRC:        binary.BigEndian.Uint32(p[36:]),
	}
}
