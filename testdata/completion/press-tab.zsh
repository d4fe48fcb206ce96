# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The shisa authors
#
# press-tab.zsh SETUP LINE...
#
# Types each LINE into an interactive zsh, after SETUP, presses Tab, and prints what stands there then.

zmodload zsh/zpty || exit

# wait reads the terminal until a word comes that no typed line holds.
wait() {
	local seen
	zpty -r z seen "*$1*" || { print -u2 "zsh ended: $seen"; exit 1 }
}

cat > setup.zsh <<-EOF
	PS1= PS2= RPS1=
	unsetopt beep
	$1
	tell() { print -r -- "\$BUFFER" > buffer; BUFFER=; print -n "NO""TED" }
	zle -N tell
	bindkey '^I' complete-word
	bindkey '^X' tell
	print "REA""DY"
EOF
shift

zpty z zsh -f -i
zpty -w z 'source ./setup.zsh'
wait READY
for line; do
	zpty -n -w z "$line"$'\t\x18'
	wait NOTED
	cat buffer
done
zpty -d z
