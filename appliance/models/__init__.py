"""What a box knows about models: the card, the package that is verified when it is opened, and the installed store."""
