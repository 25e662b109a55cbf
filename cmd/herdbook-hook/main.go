// Command herdbook-hook is the program that Git runs on a push before any ref moves. The server installs it by itself and
// asks it nothing but to call back; nobody starts it by hand.
package main

import (
	"os"

	"github.com/herdbook/herdbook/storage/gitrepo/hook"
)

func main() { os.Exit(hook.Main()) }
