package meta

import (
	"context"
	"regexp"
	"strings"
	"testing"
)

// TestStatements checks the registry; Open itself prepares every text.
func TestStatements(t *testing.T) {
	db, err := Open(context.Background(), Config{Path: t.TempDir() + "/meta.db"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	seen := make(map[string]statement)
	foreign := regexp.MustCompile(`(?i)\b(json\w*|strftime|datetime|ifnull|rowid|group_concat|glob|insert or|replace into|autoincrement|now)\b|\?|==`)
	for s := range numStatements {
		text := statementText[s]
		if text == "" {
			t.Errorf("statement %d has no text", s)
			continue
		}
		if other, ok := seen[text]; ok {
			t.Errorf("statements %d and %d have the same text", other, s)
		}
		seen[text] = s
		if m := foreign.FindString(text); m != "" {
			t.Errorf("%q is not in both engines: %s", m, text)
		}
		if db.write[s] == nil || s.reads() != (db.read[s] != nil) {
			t.Errorf("not prepared where it should be: %s", text)
		}
		if s.reads() == strings.Contains(text, "RETURNING") && s.reads() {
			t.Errorf("reads and writes: %s", text)
		}
	}
}
