"""What every daemon's door needs: who is calling, who may, what was said, and how it is served."""
