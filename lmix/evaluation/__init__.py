"""What a mixed policy can do: rates on held-out problems, the sweep of alpha, and what two policies solve alike."""
