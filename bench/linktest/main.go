// Command linktest is a long link for scripts: a proxy between an address of
// this machine and another one. It runs until its standard input ends, and then
// prints how many bytes have passed.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/snapferry/snapferry/internal/linktest"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:0", "`address` to listen at")
	to := flag.String("to", "", "`address` that the link leads to")
	rate := flag.Int64("rate", 0, "bytes a second of all connections together; 0 for no limit")
	trip := flag.Duration("rtt", 0, "round trip")
	window := flag.Int64("window", 0, "bytes of one connection under way; 0 for what the link holds")
	flag.Parse()
	l, err := linktest.New(*listen, *to, linktest.Shape{Rate: *rate, RoundTrip: *trip, Window: *window})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Address)
	_, err = io.Copy(io.Discard, os.Stdin)
	there, back := l.Passed()
	l.Close()
	fmt.Println(there, back)
	if err != nil {
		log.Fatal(err)
	}
}
